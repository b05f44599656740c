//! C and C++ programs: what `addr2line`, `nm` and `objdump` say is what we say.

use std::path::Path;

use crate::build::{Dir, addr2line, base_name, function, functions, names, symbolize};
use selvedge_symbol::{Module, Options, Symbolizer};

/// Every address of the functions named must give the same as `addr2line`.
fn agrees_with_addr2line(path: &Path, wanted: &[&str]) {
    let svmas: Vec<u64> = functions(path)
        .iter()
        .filter(|(name, ..)| wanted.iter().any(|wanted| name.contains(wanted)))
        .flat_map(|&(_, start, size)| start..start + size)
        .collect();
    assert!(svmas.len() > 20, "functions found in {}", path.display());
    let ours = symbolize(path, &[], &svmas);
    for ((svma, ours), theirs) in svmas.iter().zip(ours).zip(addr2line(path, &svmas)) {
        let ours: Vec<_> = ours
            .iter()
            .map(|s| {
                (
                    s.name.clone(),
                    base_name(s.file.as_deref().unwrap_or("??")),
                    s.line,
                )
            })
            .collect();
        assert_eq!(ours, theirs, "at {svma:#x} of {}", path.display());
    }
}

#[test]
fn inlined_calls_of_each_dwarf_version() {
    let dir = Dir::new();
    for version in ["-gdwarf-3", "-gdwarf-4", "-gdwarf-5"] {
        let path = dir.compile("inlined.c", version, &["-O2", version]);
        agrees_with_addr2line(&path, &["work", "hidden", "main"]);
    }
}

#[test]
fn names_of_cpp_functions() {
    let dir = Dir::new();
    for level in ["-O0", "-O2"] {
        let path = dir.compile("names.cc", level, &["-g", level]);
        agrees_with_addr2line(&path, &["_ZN5space", "_ZNK5space", "main"]);
        let area = function(&path, "_ZNK5space5Shape4areaERKSt6vectorIiSaIiEE").0;
        let symbols = symbolize(&path, &[], &[area]);
        let outer = symbols[0].last().expect("has a symbol");
        assert_eq!(
            outer.name,
            "space::Shape::area(std::vector<int, std::allocator<int> > const&) const"
        );
        assert_eq!(
            outer.system_name,
            "_ZNK5space5Shape4areaERKSt6vectorIiSaIiEE"
        );
        assert_eq!(outer.start_line, 11);
    }
}

#[test]
fn inlined_calls_can_be_left_out() {
    let dir = Dir::new();
    let path = dir.compile("inlined.c", "program", &["-O2", "-g"]);
    let module = Module::open(&path).expect("open");
    let (start, size) = function(&path, "work");
    let svmas: Vec<u64> = (start..start + size).collect();
    let with = Symbolizer::default().symbolize(&module, &svmas);
    let options = Options {
        inlines: false,
        ..Options::default()
    };
    let without = Symbolizer::new(options).symbolize(&module, &svmas);
    let mut deepest = 0;
    for (with, without) in with.iter().zip(&without) {
        deepest = deepest.max(with.len());
        assert_eq!(without.len(), 1);
        assert_eq!(
            with.last(),
            without.first(),
            "the line of the function itself"
        );
        assert_eq!(without[0].name, "work");
        assert_eq!(without[0].start_line, 18);
        let inlined: Vec<bool> = with.iter().map(|symbol| symbol.inlined).collect();
        let expected: Vec<bool> = (1..=with.len()).map(|n| n < with.len()).collect();
        assert_eq!(inlined, expected);
    }
    assert_eq!(deepest, 3, "square in squares in work");
}

#[test]
fn order_and_repetition_of_addresses_do_not_matter() {
    let dir = Dir::new();
    let path = dir.compile("inlined.c", "program", &["-O2", "-g"]);
    let (work, _) = function(&path, "work");
    let (main, _) = function(&path, "main");
    let symbols = symbolize(&path, &[], &[main, work, main, u64::MAX, 0, work]);
    let outer: Vec<Option<&str>> = symbols
        .iter()
        .map(|s| Some(s.last()?.name.as_str()))
        .collect();
    let (work, main) = (Some("work"), Some("main"));
    assert_eq!(outer, [main, work, main, None, None, work]);
}

#[test]
fn compressed_sections() {
    let dir = Dir::new();
    let path = dir.compile("inlined.c", "plain", &["-O2", "-g"]);
    let (start, size) = function(&path, "work");
    let svmas: Vec<u64> = (start..start + size).collect();
    let plain = symbolize(&path, &[], &svmas);
    for kind in ["zlib", "zlib-gnu", "zstd"] {
        let option = format!("--compress-debug-sections={kind}");
        dir.tool("objcopy", &[&option, "plain", kind]);
        assert_eq!(symbolize(&dir.path(kind), &[], &svmas), plain, "{kind}");
    }
}

#[test]
fn split_units_beside_the_program_and_in_a_package() {
    let dir = Dir::new();
    for version in ["-gdwarf-4", "-gdwarf-5"] {
        let path = dir.compile("inlined.c", "whole", &["-O2", version]);
        let (start, size) = function(&path, "work");
        let svmas: Vec<u64> = (start..start + size).collect();
        let whole: Vec<_> = symbolize(&path, &[], &svmas);

        // The `.dwo` file is named after the output.
        let path = dir.compile("inlined.c", "split", &["-O2", version, "-gsplit-dwarf"]);
        assert_eq!(function(&path, "work"), (start, size));
        assert_eq!(symbolize(&path, &[], &svmas), whole, "{version}: .dwo");

        // The package tool of the binutils (2.40) crashes on version 5.
        if version == "-gdwarf-4" {
            dir.tool("dwp", &["-e", "split", "-o", "split.dwp"]);
        }
        for entry in std::fs::read_dir(dir.path("")).expect("list the directory") {
            let file = entry.expect("entry").path();
            if file.extension().is_some_and(|extension| extension == "dwo") {
                std::fs::remove_file(file).expect("remove the .dwo file");
            }
        }
        if version == "-gdwarf-4" {
            assert_eq!(symbolize(&path, &[], &svmas), whole, "{version}: .dwp");
            std::fs::remove_file(dir.path("split.dwp")).expect("remove the package");
        }
        let alone = symbolize(&path, &[], &svmas);
        assert!(
            alone.iter().all(|symbols| names(symbols)[0].0 == "work"),
            "{version}: alone"
        );
    }
}

#[test]
fn symbol_tables_without_debug_information() {
    let dir = Dir::new();
    let path = dir.compile("inlined.c", "plain", &["-O2", "-rdynamic"]);
    let (work, size) = function(&path, "work");
    let (hidden, _) = function(&path, "hidden");
    let start = functions(&path)
        .iter()
        .find(|f| f.0 == "_start")
        .expect("_start")
        .1;
    let svmas = [work, work + size - 1, hidden, start + 1];
    let symbols = symbolize(&path, &[], &svmas);
    let found: Vec<_> = symbols.iter().map(|symbols| names(symbols)).collect();
    assert_eq!(
        found,
        [
            [("work", 0)],
            [("work", 0)],
            [("hidden", 0)],
            [("_start", 0)]
        ]
    );

    dir.tool("strip", &["plain"]);
    let symbols = symbolize(&path, &[], &svmas);
    assert_eq!(
        names(&symbols[0]),
        [("work", 0)],
        "exported, so still in .dynsym"
    );
    assert_eq!(
        names(&symbols[2]),
        [],
        "not exported, so unknown and not a neighbour"
    );
}

#[test]
fn the_best_of_several_names_for_one_address() {
    let dir = Dir::new();
    let path = dir.compile("aliases.s", "program", &[]);
    let (start, size) = function(&path, "exported");
    let (after, _) = function(&path, "after");
    let svmas: Vec<u64> = (start..after + 4).collect();
    let symbols = symbolize(&path, &[], &svmas);
    let found: Vec<&str> = symbols
        .iter()
        .map(|symbols| symbols.first().map_or("", |symbol| symbol.name.as_str()))
        .collect();
    assert_eq!(size, 4);
    assert_eq!(
        found[..4],
        ["longer_exported"; 4],
        "a label inside does not end a function"
    );
    assert_eq!(found[4..7], ["unsized"; 3], "reaches to the next symbol");
    assert_eq!(found[7..9], ["after", ""], "a stated size is kept to");
}

#[test]
fn stubs_of_the_procedure_linkage_table() {
    let dir = Dir::new();
    for (name, flags) in [
        ("lazy", &["-Wl,-z,lazy"][..]),
        ("now", &["-Wl,-z,now"]),
        ("no-pie", &["-no-pie"]),
        ("branch-protected", &["-fcf-protection", "-Wl,-z,ibtplt"]),
        ("gold", &["-fuse-ld=gold"]),
        ("static", &["-static"]),
    ] {
        let path = dir.compile("inlined.c", name, flags);
        for stripped in [false, true] {
            if stripped {
                dir.tool("strip", &[name]);
            }
            let stubs = objdump_stubs(&dir, name);
            let addresses: Vec<u64> = stubs.iter().map(|stub| stub.0).collect();
            let symbols = symbolize(&path, &[], &addresses);
            for (symbols, (address, expected)) in symbols.iter().zip(&stubs) {
                assert_eq!(
                    symbols.first().map(|symbol| symbol.name.as_str()),
                    Some(expected.as_str()),
                    "{name}: stub at {address:#x}"
                );
            }
            if name != "static" {
                let puts = stubs.iter().any(|stub| stub.1 == "puts@plt");
                assert!(puts, "{name}: {stubs:x?}");
            }
        }
    }
}

/// The stubs that `objdump` names. It names those through resolvers after the address only, so these are left out.
fn objdump_stubs(dir: &Dir, name: &str) -> Vec<(u64, String)> {
    dir.tool("objdump", &["-d", name])
        .lines()
        .filter_map(|line| {
            let (address, rest) = line.split_once(" <")?;
            let stub = rest.strip_suffix(">:")?;
            let known = stub.ends_with("@plt") && !stub.starts_with('*');
            Some((u64::from_str_radix(address, 16).ok()?, stub.to_owned())).filter(|_| known)
        })
        .collect()
}

#[test]
fn a_file_deleted_after_opening_is_still_read() {
    let dir = Dir::new();
    let path = dir.compile("inlined.c", "program", &["-O2", "-g"]);
    let (work, _) = function(&path, "work");
    let module = Module::open(&path).expect("open");
    let before = Symbolizer::default().symbolize(&module, &[work]);
    std::fs::remove_file(&path).expect("delete");
    assert_eq!(Symbolizer::default().symbolize(&module, &[work]), before);
    assert_eq!(before[0].last().map(|symbol| symbol.line), Some(20));
}

#[test]
fn addresses_follow_from_file_offsets() {
    let dir = Dir::new();
    let path = dir.compile("inlined.c", "program", &["-no-pie"]);
    let module = Module::open(&path).expect("open");
    let (work, size) = function(&path, "work");
    let code = dir.tool("readelf", &["-lW", "program"]);
    let load: Vec<u64> = code
        .lines()
        .find(|line| line.contains("LOAD") && line.contains("R E"))
        .expect("an executable segment")
        .split_whitespace()
        .filter_map(|field| u64::from_str_radix(field.strip_prefix("0x")?, 16).ok())
        .collect();
    let (offset, address, file_size) = (load[0], load[1], load[3]);
    assert_eq!(module.svma(work - address + offset), Some(work));
    assert_eq!(
        module.svma(work + size - address + offset),
        Some(work + size)
    );
    assert_eq!(
        module.svma(offset + file_size - 1),
        Some(address + file_size - 1)
    );
    assert_eq!(module.svma(u64::MAX), None);
}

#[test]
fn what_is_no_image_is_refused_with_a_reason() {
    let dir = Dir::new();
    std::fs::write(dir.path("text"), "not an image\n").expect("write");
    std::fs::write(dir.path("empty"), "").expect("write");
    dir.tool("mkfifo", &["fifo"]);
    for (name, reason) in [
        ("missing", "cannot open"),
        ("text", "not a 64-bit little-endian elf image"),
        ("empty", "not a regular file with contents"),
        ("fifo", "not a regular file with contents"),
        ("", "not a regular file with contents"),
    ] {
        let error = Module::open(&dir.path(name)).expect_err(name);
        assert!(error.to_string().contains(reason), "{name}: {error}");
        assert_eq!(error.is_not_found(), name == "missing");
        assert_eq!(error.is_not_elf(), name == "text");
        assert_eq!(
            std::error::Error::source(&error).is_some(),
            name == "missing"
        );
    }
}
