//! Readable names for linker names.

use std::fmt::{self, Write};

/// Longer demangled names are not useful to anyone, and substitutions in a hostile name can expand without end.
const LONGEST: usize = 16 << 10;

/// Suffixes that compilers add, after a dot, to the name of a function that they have copied or split.
const CLONES: [&str; 12] = [
    "__uniq",
    "clone",
    "cold",
    "constprop",
    "hot",
    "isra",
    "llvm",
    "localalias",
    "lto_priv",
    "part",
    "unlikely",
    "warm",
];

/// The source-level name for a linker name: Rust without its hash, C++ with its parameters, everything else as it is, and
/// always without the suffixes of compiler-made copies (`.cold`, `.constprop.0`, …), so that the parts of one source
/// function carry one name. `…@plt` stays at the end.
pub(crate) fn demangle(name: &str) -> String {
    if let Some(target) = name.strip_suffix("@plt") {
        return demangle(target) + "@plt";
    }
    let base = without_clone_suffix(name);
    rust(base)
        .or_else(|| cpp(base))
        .unwrap_or_else(|| base.to_owned())
}

/// True if the name is an encoding of a path and not the source name itself.
pub(crate) fn is_mangled(name: &str) -> bool {
    name.starts_with("_Z") || name.starts_with("_R")
}

fn without_clone_suffix(name: &str) -> &str {
    let mut base = name;
    while let Some((front, suffix)) = base.rsplit_once('.') {
        let known = CLONES.contains(&suffix)
            || (!suffix.is_empty() && suffix.bytes().all(|byte| byte.is_ascii_digit()));
        if front.is_empty() || !known {
            break;
        }
        base = front;
    }
    base
}

fn rust(name: &str) -> Option<String> {
    // C++ functions are `_ZN…E` too, but never end in a path element that is a 16-digit hash.
    let legacy = name
        .strip_suffix('E')
        .and_then(|front| front.get(front.len().checked_sub(19)?..))
        .is_some_and(|last| {
            last.starts_with("17h") && last[3..].bytes().all(|byte| byte.is_ascii_hexdigit())
        });
    if !legacy && !name.starts_with("_R") {
        return None;
    }
    let demangled = rustc_demangle::try_demangle(name).ok()?;
    let mut out = Bounded::default();
    write!(out, "{demangled:#}").ok()?;
    Some(out.text)
}

fn cpp(name: &str) -> Option<String> {
    if !name.starts_with("_Z") && !name.starts_with("_GLOBAL_") {
        return None;
    }
    let symbol = cpp_demangle::Symbol::new(name).ok()?;
    let mut out = Bounded::default();
    symbol
        .structured_demangle(&mut out, &cpp_demangle::DemangleOptions::new())
        .ok()?;
    Some(out.text)
}

#[derive(Default)]
struct Bounded {
    text: String,
}

impl Write for Bounded {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        if self.text.len() + part.len() > LONGEST {
            return Err(fmt::Error);
        }
        self.text.push_str(part);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_names_of_each_language() {
        for (linker, source) in [
            ("main", "main"),
            ("_start", "_start"),
            ("i", "i"),
            ("_ZN5space3fooEibc", "space::foo(int, bool, char)"),
            ("_ZN3foo3barEv", "foo::bar()"),
            (
                "_ZN4core3fmt9Formatter3pad17h0123456789abcdefE",
                "core::fmt::Formatter::pad",
            ),
            (
                "_RNvMsr_NtCs3ssYzQotkvD_3std4pathNtB5_7PathBuf3newCs15kBYyAo9fc_7mycrate",
                "<std::path::PathBuf>::new",
            ),
            ("_ZN5space3fooEibc@plt", "space::foo(int, bool, char)@plt"),
            ("malloc@plt", "malloc@plt"),
        ] {
            assert_eq!(demangle(linker), source, "{linker}");
        }
    }

    #[test]
    fn parts_of_one_function_share_its_name() {
        for part in [
            "work.cold",
            "work.constprop.0",
            "work.part.1.isra.0",
            "work.llvm.1234",
        ] {
            assert_eq!(demangle(part), "work", "{part}");
        }
        assert_eq!(demangle("_ZN3foo3barEv.cold"), "foo::bar()");
        assert_eq!(
            demangle("_ZN4core3fmt9Formatter3pad17h0123456789abcdefE.llvm.77"),
            "core::fmt::Formatter::pad"
        );
        assert_eq!(demangle("file.c"), "file.c");
        assert_eq!(demangle(".text"), ".text");
    }

    #[test]
    fn damaged_names_stay_as_they_are() {
        for name in [
            "_Z",
            "_R",
            "_ZN99999foo",
            "_ZN3fo\u{fffd}",
            "é17h0123456789abcdefE",
            "",
        ] {
            assert_eq!(demangle(name), name);
        }
    }

    #[test]
    fn names_that_expand_without_end_are_left_alone() {
        // Every template argument doubles the one before.
        let mut name = String::from("_Z1fI1aIiE");
        for _ in 0..90 {
            name.push_str("1aIS_S_E");
        }
        name.push_str("Evv");
        assert!(demangle(&name).len() <= LONGEST);
    }
}
