//! All stacks of a profile, merged from the root.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::frames::{Frames, Step};
use crate::model::{Label, LabelValue, Profile, Sample};

/// What stacks are grouped by below the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Grouping {
    None,
    Thread,
    Process,
}

impl Grouping {
    /// Keys of the labels with the name (text) and the id (number).
    fn keys(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::None => None,
            Self::Thread => Some(("thread", "tid")),
            Self::Process => Some(("process", "pid")),
        }
    }

    /// Whether any sample has labels to group by.
    pub(super) fn applies_to(self, profile: &Profile) -> bool {
        let Some((name, id)) = self.keys() else {
            return true;
        };
        (profile.samples.iter().flat_map(|sample| &sample.labels))
            .any(|label| label.key == name || label.key == id)
    }

    /// The name of the group that `sample` is in.
    fn group(self, sample: &Sample) -> Option<String> {
        let (name, id) = self.keys()?;
        let label = |key| find(&sample.labels, key);
        let text = label(name).and_then(|value| match value {
            LabelValue::Text(text) => Some(text),
            LabelValue::Number(..) => None,
        });
        let number = label(id).and_then(|value| match value {
            LabelValue::Number(number, _) => Some(number),
            LabelValue::Text(_) => None,
        });
        Some(match (text, number) {
            (Some(text), Some(number)) => format!("{text} ({id} {number})"),
            (Some(text), None) => text.clone(),
            (None, Some(number)) => format!("{id} {number}"),
            (None, None) => format!("no {name}"),
        })
    }
}

fn find<'a>(labels: &'a [Label], key: &str) -> Option<&'a LabelValue> {
    (labels.iter().find(|label| label.key == key)).map(|label| &label.value)
}

/// The merged stacks, by columns and in preorder; siblings are sorted by decreasing value.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Tree {
    by: Grouping,
    /// Distance from the root, which has 0.
    depth: Vec<u32>,
    /// Which of the [`Frames`].
    frame: Vec<u32>,
    /// Sum of the values of all samples in or below.
    value: Vec<i64>,
    /// The line with the largest part of `value`; 0 where unknown.
    line: Vec<i64>,
}

impl Tree {
    /// Merges the values of type `sample_index`; `stacks` has the frames at each location, outermost first.
    pub(super) fn new(
        profile: &Profile,
        sample_index: usize,
        by: Grouping,
        frames: &mut Frames,
        stacks: &[Vec<Step>],
    ) -> Self {
        let mut merged = Merged::new(frames.group("all"));
        for sample in &profile.samples {
            let value = sample
                .values
                .get(sample_index)
                .map_or(0, |value| value.saturating_abs());
            if value == 0 {
                continue;
            }
            let group = by.group(sample).map(|name| Step {
                frame: frames.group(&name),
                line: 0,
            });
            let stack = sample.locations.iter().rev().flat_map(|&at| &stacks[at]);
            merged.add(group.into_iter().chain(stack.copied()), value);
        }
        merged.flatten(by, frames)
    }
}

struct Node {
    parent: usize,
    depth: u32,
    frame: u32,
    value: i64,
}

/// A tree that grows; the root is node 0, and its own parent.
struct Merged {
    nodes: Vec<Node>,
    children: HashMap<(usize, u32), usize>,
    lines: BTreeMap<(usize, i64), i64>,
}

impl Merged {
    fn new(root: u32) -> Self {
        Self {
            nodes: vec![Node {
                parent: 0,
                depth: 0,
                frame: root,
                value: 0,
            }],
            children: HashMap::new(),
            lines: BTreeMap::new(),
        }
    }

    fn add(&mut self, stack: impl Iterator<Item = Step>, value: i64) {
        let mut node = 0;
        self.weigh(node, value);
        for Step { frame, line } in stack {
            let next = self.nodes.len();
            let child = *self.children.entry((node, frame)).or_insert(next);
            if child == next {
                self.nodes.push(Node {
                    parent: node,
                    depth: self.nodes[node].depth + 1,
                    frame,
                    value: 0,
                });
            }
            node = child;
            self.weigh(node, value);
            let weight = self.lines.entry((node, line)).or_default();
            *weight = weight.saturating_add(value);
        }
    }

    fn weigh(&mut self, node: usize, value: i64) {
        let sum = &mut self.nodes[node].value;
        *sum = sum.saturating_add(value);
    }

    fn flatten(self, by: Grouping, frames: &Frames) -> Tree {
        let mut heaviest = vec![(0, 0); self.nodes.len()];
        for (&(node, line), &weight) in &self.lines {
            // Of lines that weigh the same, the first.
            if weight > heaviest[node].1 {
                heaviest[node] = (line, weight);
            }
        }
        let mut children: Vec<Vec<usize>> = vec![Vec::new(); self.nodes.len()];
        for (child, node) in self.nodes.iter().enumerate().skip(1) {
            children[node.parent].push(child);
        }
        let count = self.nodes.len();
        let mut tree = Tree {
            by,
            depth: Vec::with_capacity(count),
            frame: Vec::with_capacity(count),
            value: Vec::with_capacity(count),
            line: Vec::with_capacity(count),
        };
        // A stack may be of any depth: no recursion.
        let mut pending = vec![0];
        while let Some(at) = pending.pop() {
            let node = &self.nodes[at];
            tree.depth.push(node.depth);
            tree.frame.push(node.frame);
            tree.value.push(node.value);
            tree.line.push(heaviest[at].0);
            let mut below = std::mem::take(&mut children[at]);
            below.sort_by_key(|&child| {
                let Node { frame, value, .. } = self.nodes[child];
                (Reverse(value), frames.name(frame), frame)
            });
            pending.extend(below.into_iter().rev());
        }
        tree
    }
}
