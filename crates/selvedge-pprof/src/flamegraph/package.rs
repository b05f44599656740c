//! Which package a function belongs to: a Rust crate, a Go package, a C++ namespace, else the file that has its code.

use crate::frame;

/// Returns the package of the function `name` in the source file `file`, whose code is in `object`.
///
/// Each may be empty where unknown; what is returned is empty if nothing tells.
pub(super) fn of(name: &str, file: &str, object: &str) -> String {
    let found = if file.ends_with(".go") {
        go(name)
    } else {
        path(name).or_else(|| source(file))
    };
    match found {
        Some(package) => package.to_owned(),
        None if object.is_empty() => String::new(),
        None => frame::base(object).to_owned(),
    }
}

/// The first element of a path with `::`, of the type rather than the trait in `<Type as Trait>::function`.
fn path(name: &str) -> Option<&str> {
    let mut rest = name;
    loop {
        rest = rest.trim_start_matches(['<', '&', '*', '[', '(', ' ']);
        let word = ["dyn ", "mut ", "const ", "impl "]
            .into_iter()
            .find_map(|word| rest.strip_prefix(word));
        match word {
            Some(after) => rest = after,
            None => break,
        }
    }
    let end = rest
        .find(|c: char| !(c.is_alphanumeric() || c == '_'))
        .unwrap_or(rest.len());
    let (first, after) = rest.split_at(end);
    if !first.is_empty() && after.starts_with("::") {
        return Some(first);
    }
    // A type without path is a parameter or a primitive one: then the trait tells more.
    let (_, implemented) = name.strip_prefix('<')?.split_once(" as ")?;
    path(implemented)
}

/// `encoding/json` of `encoding/json.(*Decoder).Decode`.
fn go(name: &str) -> Option<&str> {
    // Type parameters may contain paths of their own.
    let plain = &name[..name.find('[').unwrap_or(name.len())];
    let directory = plain.rfind('/').map_or(0, |slash| slash + 1);
    let dot = plain[directory..].find('.')?;
    Some(&name[..directory + dot])
}

/// The crate that a source file is of, where its path shows it.
fn source(file: &str) -> Option<&str> {
    if let Some((_, crates)) = file.split_once("/registry/src/") {
        let directory = crates.split('/').nth(1)?;
        let version = directory
            .match_indices('-')
            .find(|(at, _)| directory[at + 1..].starts_with(|c: char| c.is_ascii_digit()));
        return Some(version.map_or(directory, |(at, _)| &directory[..at]));
    }
    let (_, std) = file.split_once("/rustc/")?;
    let (_, library) = std.split_once("/library/")?;
    library.split('/').next().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_told_by_name_then_source_then_object() {
        const OBJECT: &str = "/usr/bin/program";
        for (name, file, expected) in [
            ("tokio::runtime::run", "", "tokio"),
            ("<alloc::vec::Vec<T> as core::ops::Drop>::drop", "", "alloc"),
            ("<&mut dyn core::fmt::Write>::write", "", "core"),
            ("<T as serde::de::Deserialize>::deserialize", "", "serde"),
            ("<u8 as std::fmt::Display>::fmt", "", "std"),
            (
                "wrapping_add",
                "/rustc/0123/library/core/src/num/mod.rs",
                "core",
            ),
            (
                "f",
                "/home/me/.cargo/registry/src/index-1/serde-json-1.0/src/a.rs",
                "serde-json",
            ),
            ("main.main", "main.go", "main"),
            (
                "encoding/json.(*Decoder).Decode",
                "json.go",
                "encoding/json",
            ),
            ("a.b/c/d.F[a.b/e.T]", "x.go", "a.b/c/d"),
            ("memcpy", "memcpy.S", "program"),
            ("void f<a::b>(int)", "", "program"),
            ("<unfinished as ", "", "program"),
            ("größe::über", "", "größe"),
            ("", "", "program"),
        ] {
            assert_eq!(of(name, file, OBJECT), expected, "{name}");
        }
        assert_eq!(of("memcpy", "", ""), "");
    }
}
