//! Panics through frames with and without destructors, caught and passed on.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

struct Count<'a>(&'a Cell<u32>);

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

#[inline(never)]
fn deep(n: u32, count: &Cell<u32>) -> u32 {
    let _on_exit = Count(count);
    if n == 0 {
        panic!("selvedge {}", count.get());
    }
    if n % 10 == 5 {
        match catch_unwind(AssertUnwindSafe(|| deep(n - 1, count))) {
            Ok(found) => return found,
            Err(payload) => resume_unwind(payload),
        }
    }
    deep(n - 1, count) + count.get()
}

fn main() {
    let count = Cell::new(0);
    let mut caught = 0;
    for _ in 0..3 {
        caught += u32::from(catch_unwind(AssertUnwindSafe(|| deep(20, &count))).is_err());
    }
    assert_eq!((caught, count.get()), (3, 63));
}
