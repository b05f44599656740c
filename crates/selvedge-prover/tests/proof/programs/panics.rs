//! Panics below 30 frames, each of which has something to drop, and catches it.

#[inline(never)]
fn down(n: u32, kept: &mut Vec<u32>) -> u32 {
    let text = n.to_string();
    assert!(n > 0, "deep");
    kept.push(n);
    down(n - 1, kept) + text.len() as u32
}

fn main() {
    std::panic::set_hook(Box::new(|_| ()));
    let caught = std::panic::catch_unwind(|| down(30, &mut Vec::new()));
    println!("{}", caught.is_err());
}
