//! All stacks of a profile, merged from the root.

use std::cmp::Reverse;
use std::collections::HashMap;

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
    lines: HashMap<(usize, i64), i64>,
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
            lines: HashMap::new(),
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
            let best = &mut heaviest[node];
            if (weight, Reverse(line)) > (best.1, Reverse(best.0)) {
                *best = (line, weight);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ProfileBuilder;
    use crate::model::{Function, Line, Location, ValueType};

    /// Names and lines, the leaf first; the value; labels.
    type Stack<'a> = (&'a [(&'a str, i64)], i64, &'a [(&'a str, LabelValue)]);

    fn profile(stacks: &[Stack<'_>]) -> Profile {
        let mut builder = ProfileBuilder::new(vec![ValueType::default()]);
        for (stack, value, labels) in stacks {
            let locations: Vec<usize> = (stack.iter())
                .map(|&(name, line)| {
                    let function = builder.function(Function {
                        name: name.into(),
                        ..Function::default()
                    });
                    let line = Line {
                        function,
                        line,
                        column: 0,
                    };
                    builder.location(Location {
                        address: line.line.unsigned_abs(),
                        lines: vec![line],
                        ..Location::default()
                    })
                })
                .collect();
            let labels: Vec<Label> = (labels.iter())
                .map(|(key, value)| Label {
                    key: (*key).into(),
                    value: value.clone(),
                })
                .collect();
            builder.sample(&locations, &[*value], &labels);
        }
        builder.finish()
    }

    /// The nodes as depth, name, value and line.
    fn nodes(profile: &Profile, by: Grouping) -> Vec<(u32, String, i64, i64)> {
        let (mut frames, stacks) = Frames::new(profile);
        let tree = Tree::new(profile, 0, by, &mut frames, &stacks);
        (0..tree.depth.len())
            .map(|at| {
                let name = frames.name(tree.frame[at]).to_owned();
                (tree.depth[at], name, tree.value[at], tree.line[at])
            })
            .collect()
    }

    fn node(depth: u32, name: &str, value: i64, line: i64) -> (u32, String, i64, i64) {
        (depth, name.to_owned(), value, line)
    }

    #[test]
    fn stacks_are_merged_and_siblings_sorted() {
        let profile = profile(&[
            (&[("small", 1), ("main", 10)], 3, &[]),
            (&[("large", 2), ("main", 11)], 4, &[]),
            (&[("main", 10)], 2, &[]),
            (&[("nothing", 9), ("main", 9)], 0, &[]),
            (&[("other", 0)], -1, &[]),
        ]);
        assert_eq!(
            nodes(&profile, Grouping::None),
            [
                node(0, "all", 10, 0),
                node(1, "main", 9, 10),
                node(2, "large", 4, 2),
                node(2, "small", 3, 1),
                node(1, "other", 1, 0),
            ]
        );
    }

    #[test]
    fn groups_are_named_by_text_and_number() {
        let thread = || ("thread", LabelValue::Text("io".into()));
        let tid = |tid| ("tid", LabelValue::Number(tid, String::new()));
        let profile = profile(&[
            (&[("f", 1)], 40, &[thread(), tid(7)]),
            (&[("f", 1)], 30, &[thread(), tid(8)]),
            (&[("f", 1)], 20, &[thread()]),
            (&[("f", 1)], 10, &[tid(9)]),
            (&[("f", 1)], 1, &[]),
        ]);
        let groups: Vec<_> = (nodes(&profile, Grouping::Thread).into_iter())
            .filter(|(depth, ..)| *depth == 1)
            .map(|(_, name, value, _)| (name, value))
            .collect();
        let expected = [
            ("io (tid 7)", 40),
            ("io (tid 8)", 30),
            ("io", 20),
            ("tid 9", 10),
            ("no thread", 1),
        ];
        assert_eq!(
            groups,
            expected.map(|(name, value)| (name.to_owned(), value))
        );
        assert!(Grouping::Thread.applies_to(&profile));
        assert!(!Grouping::Process.applies_to(&profile));
    }

    #[test]
    fn a_deep_stack_does_not_recurse() {
        let stack = ["f"; 200_000].join(";");
        let profile = crate::collapsed::read(format!("{stack} 1").as_bytes()).unwrap();
        assert_eq!(nodes(&profile, Grouping::None).len(), 200_001);
    }
}
