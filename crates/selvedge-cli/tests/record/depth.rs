//! Stacks that are deeper than what is kept of them.

use crate::harness::{Recording, Workshop};

/// Recurses so deep on a stack of its own, then burns.
const DEEP: &str = "BURNER(hot) long depth;
  __attribute__((noinline)) long sink(long n) {
    volatile long kept = n;
    if (n == 0) hot(0.5); else kept += sink(n - 1);
    return kept + 1;
  }
  __attribute__((noinline)) void outermost(void) { depth = sink(depth); }
  void *run(void *unused) { outermost(); return unused; }
  int main(int n, char **v) {
    depth = atol(v[1]);
    pthread_attr_t large; pthread_attr_init(&large); pthread_attr_setstacksize(&large, 512 << 20);
    pthread_t t; if (pthread_create(&t, &large, run, 0)) return 1;
    pthread_join(t, 0);
    tell_cpu(); return 0; }";

fn record(depth: &str) -> Recording {
    let workshop = Workshop::new();
    let program = workshop.program("program", DEEP);
    workshop
        .record()
        .options(&["-F", "250"])
        .run([program.as_os_str(), depth.as_ref()])
        .exits(0)
}

#[test]
fn deep_recursion_keeps_its_leaf_and_its_root() {
    let recording = record("5000");
    let hot = recording.stacks().through("hot");
    assert!(hot.count() > 20, "{} samples", hot.count());
    let mut whole = 0;
    for names in hot.names() {
        let place = |name: &str| names.iter().position(|found| *found == name);
        let (leaf, cut, root) = (place("hot"), place("[truncated]"), place("outermost"));
        assert!(leaf.is_some() && leaf < cut, "{names:?}");
        assert!(names.len() <= 512, "{} frames", names.len());
        // Until the bounds of a new thread's stack are known, little of it is read.
        let Some(root) = root else {
            assert_eq!(names.last(), Some(&"[truncated: stack unreadable]"));
            continue;
        };
        assert!(cut < Some(root), "{names:?}");
        // Above `outermost` there are `run`, and how the C library starts threads.
        let start = names.get(root + 1..).unwrap_or_default();
        assert!(
            start.first() == Some(&"run") && start.len() <= 5,
            "{start:?}"
        );
        whole += 1;
    }
    assert!(whole >= 1, "no stack with its root");
}

#[test]
fn recursion_that_fits_is_whole() {
    let recording = record("400");
    let hot = recording.stacks().through("hot");
    assert!(hot.count() > 20, "{} samples", hot.count());
    for names in hot.names() {
        assert!(!names.iter().any(|name| name.starts_with("[truncated")));
        assert_eq!(names.iter().filter(|name| **name == "sink").count(), 401);
    }
}

#[test]
fn endless_recursion_is_bounded_and_says_so() {
    let recording = record("1000000");
    let hot = recording.stacks().through("hot");
    assert!(hot.count() > 20, "{} samples", hot.count());
    for names in hot.names() {
        assert_eq!(names.last(), Some(&"[truncated: too deep]"));
        assert!((400..=512).contains(&names.len()), "{} frames", names.len());
    }
}
