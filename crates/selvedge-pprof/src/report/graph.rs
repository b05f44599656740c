//! Functions and the calls between them, with the weights that pprof gives them.

use std::collections::{HashMap, HashSet};

use crate::frame;
use crate::model::{Line, Location, Profile};

/// Weights of all functions and calls.
pub(super) struct Graph {
    pub(super) nodes: Vec<Node>,
    edges: HashMap<(usize, usize), Edge>,
}

/// A function.
#[derive(Clone, Debug, Default)]
pub(super) struct Node {
    pub(super) name: String,
    /// What its own instructions weigh.
    pub(super) flat: i64,
    /// What the samples weigh that it occurs in, each counted once.
    pub(super) cum: i64,
}

/// A call from one function to another.
struct Edge {
    weight: i64,
    /// Whether it was inlined wherever it occurs.
    inline: bool,
}

/// Which kinds of calls reach a function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Callers {
    pub(super) inline: bool,
    pub(super) ordinary: bool,
}

/// The functions of a profile, and where they occur.
pub(super) struct Functions {
    names: Vec<String>,
    /// Of each location, its functions, innermost first.
    of_location: Vec<Vec<usize>>,
}

/// What makes two frames frames of one function: its name; without name, its file and first line.
type Key<'a> = (&'a str, &'a str, i64);

impl Functions {
    pub(super) fn new(profile: &Profile) -> Self {
        let mut indices: HashMap<Key<'_>, usize> = HashMap::new();
        let mut names = Vec::new();
        let mut index = |key| {
            *indices.entry(key).or_insert_with(|| {
                let (name, file, _) = key;
                names.push(if name.is_empty() {
                    frame::object_name(file)
                } else {
                    name.to_owned()
                });
                names.len() - 1
            })
        };
        let of_location = (profile.locations.iter())
            .map(|location| match location.lines.as_slice() {
                [] => vec![index(("", frame::file(profile, location), 0))],
                lines => lines
                    .iter()
                    .map(|line| index(key(profile, location, line)))
                    .collect(),
            })
            .collect();
        Self { names, of_location }
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// Weighs the functions for which `kept` holds by the values of type `index`.
    ///
    /// A function that is not kept is as if it were not there, but what it weighs itself goes to no other function.
    pub(super) fn weigh(&self, profile: &Profile, index: usize, kept: &[bool]) -> Graph {
        let mut nodes: Vec<Node> = (self.names.iter())
            .map(|name| Node {
                name: name.clone(),
                ..Node::default()
            })
            .collect();
        let mut edges: HashMap<(usize, usize), Edge> = HashMap::new();
        // The last sample that each function was seen in.
        let mut seen = vec![usize::MAX; self.len()];
        let mut seen_edges = HashSet::new();
        for (number, sample) in profile.samples.iter().enumerate() {
            let value = sample.values.get(index).copied().unwrap_or(0);
            if value == 0 {
                continue;
            }
            seen_edges.clear();
            let mut parent = None;
            let mut leaf = None;
            for &location in sample.locations.iter().rev() {
                let functions = self.of_location[location].as_slice();
                for (position, &node) in functions.iter().enumerate().rev() {
                    leaf = kept[node].then_some(node);
                    if !kept[node] {
                        continue;
                    }
                    if seen[node] != number {
                        seen[node] = number;
                        nodes[node].cum = nodes[node].cum.saturating_add(value);
                    }
                    if let Some(parent) = parent.filter(|parent| *parent != node)
                        && seen_edges.insert((parent, node))
                    {
                        let edge = edges.entry((parent, node)).or_insert(Edge {
                            weight: 0,
                            inline: true,
                        });
                        edge.weight = edge.weight.saturating_add(value);
                        edge.inline &= position + 1 != functions.len();
                    }
                    parent = Some(node);
                }
            }
            if let Some(node) = leaf {
                nodes[node].flat = nodes[node].flat.saturating_add(value);
            }
        }
        Graph { nodes, edges }
    }
}

fn key<'a>(profile: &'a Profile, location: &Location, line: &Line) -> Key<'a> {
    match profile.functions.get(line.function) {
        Some(function) if !function.name.is_empty() => (&function.name, "", 0),
        Some(function) => ("", frame::file(profile, location), function.start_line),
        None => ("", frame::file(profile, location), 0),
    }
}

impl Graph {
    /// Finds how each function is called, by calls that weigh at least `cutoff`.
    pub(super) fn callers(&self, cutoff: i64) -> Vec<Callers> {
        let mut callers = vec![Callers::default(); self.nodes.len()];
        for ((_, node), edge) in &self.edges {
            if edge.weight.saturating_abs() < cutoff {
                continue;
            }
            if edge.inline {
                callers[*node].inline = true;
            } else {
                callers[*node].ordinary = true;
            }
        }
        callers
    }
}
