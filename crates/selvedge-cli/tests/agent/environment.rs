//! Programs that a program starts: with the agent where they can take it, without it where not.

use crate::programs::{compile, folder, try_compile};
use crate::session::{AGENT, Session, has_agent, is_sampled_in_three, quiet, samples};
use selvedge_sample::region::VERSION;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering::SeqCst;

/// Starts `argv[2]` in the way that `argv[1]` names, from an empty environment.
const STARTER: &str = r#"
static int await(pid_t child) { int status; waitpid(child, &status, 0); return WEXITSTATUS(status); }
int main(int count, char **arguments) {
    char *way = arguments[1], *path = arguments[2], *name = strrchr(path, '/') + 1;
    char **rest = arguments + 2, *empty[] = { 0 }, *one[] = { "ONE=1", 0 };
    if (strcmp(way, "system")) { clearenv(); environ = empty; }
    burn(400);
    if (!strcmp(way, "execve")) execve(path, rest, empty);
    if (!strcmp(way, "execve with null")) execve(path, rest, 0);
    if (!strcmp(way, "execv")) execv(path, rest);
    if (!strcmp(way, "execvp")) execvp(name, rest);
    if (!strcmp(way, "execvpe")) execvpe(name, rest, one);
    if (!strcmp(way, "execl")) execl(path, path, (char *)0);
    if (!strcmp(way, "execlp")) execlp(name, name, (char *)0);
    if (!strcmp(way, "execle")) execle(path, path, (char *)0, one);
    if (!strcmp(way, "fexecve")) fexecve(open(path, O_RDONLY | O_CLOEXEC), rest, one);
    if (!strcmp(way, "fexecve by O_PATH")) fexecve(open(path, O_PATH | O_CLOEXEC), rest, one);
    if (!strcmp(way, "execveat")) execveat(AT_FDCWD, path, rest, one, 0);
    if (!strcmp(way, "execveat of a descriptor")) execveat(open(path, O_PATH), "", rest, one, AT_EMPTY_PATH);
    if (!strcmp(way, "system")) return WEXITSTATUS(system(path));
    pid_t child = -1;
    if (!strcmp(way, "posix_spawn") && posix_spawn(&child, path, 0, 0, rest, one)) return 81;
    if (!strcmp(way, "posix_spawnp") && posix_spawnp(&child, name, 0, 0, rest, one)) return 82;
    if (!strcmp(way, "vfork") && !(child = vfork())) { execve(path, rest, one); _exit(83); }
    if (!strcmp(way, "fork") && !(child = fork())) { execv(path, rest); _exit(84); }
    return child > 0 ? await(child) : 80;
}
"#;

const REPLACING: [&str; 12] = [
    "execve",
    "execve with null",
    "execv",
    "execvp",
    "execvpe",
    "execl",
    "execlp",
    "execle",
    "fexecve",
    "fexecve by O_PATH",
    "execveat",
    "execveat of a descriptor",
];
const SPAWNING: [&str; 4] = ["posix_spawn", "posix_spawnp", "vfork", "fork"];

/// Whether an environment, as `env` prints it, carries the session on.
fn carries(text: &str, session: &Session) -> bool {
    let preload = text.lines().any(|line| {
        line.strip_prefix("LD_PRELOAD=")
            .is_some_and(|list| list.contains(AGENT))
    });
    let named = text
        .lines()
        .any(|line| line == format!("SELVEDGE_SESSION={}", session.name()));
    assert_eq!(preload, named, "both or none: {text}");
    preload
}

#[test]
fn every_way_to_start_a_program_carries_the_session_on() {
    let starter = compile("starter", STARTER);
    for way in REPLACING.iter().chain(&SPAWNING).chain(&["system"]) {
        is_sampled_in_three(|| {
            let session = Session::new(true);
            let text = quiet(session.command(&starter).args([way, "/usr/bin/env"]));
            assert!(carries(&text, &session), "{way}: {text}");
            let processes = session.processes();
            let (first, last) = (processes[0], *processes.last().unwrap());
            assert!(processes.len() >= 2, "{way}: {} processes", processes.len());
            let cpu = first.cpu_end.load(SeqCst);
            assert!(
                cpu >= 100_000_000,
                "{way}: the first one has ended after {cpu} ns"
            );
            let same = first.pid.load(SeqCst) == last.pid.load(SeqCst);
            assert_eq!(same, REPLACING.contains(way), "{way}");
            samples(first)
        });
    }
}

#[test]
fn without_children_only_the_process_itself_is_recorded() {
    let starter = compile("starter", STARTER);
    for way in REPLACING.iter().chain(&SPAWNING) {
        let session = Session::new(false);
        let text = quiet(session.command(&starter).args([way, "/usr/bin/env"]));
        assert_eq!(
            session.processes().len(),
            if REPLACING.contains(way) { 2 } else { 1 },
            "{way}"
        );
        // The process takes both out of its own environment as soon as it starts.
        assert!(
            !text.contains("LD_PRELOAD") && !text.contains("SELVEDGE_SESSION"),
            "{way}: {text}"
        );
    }
}

#[test]
fn without_children_other_libraries_stay() {
    for (before, after) in [
        (format!("{AGENT}:libc.so.6"), "LD_PRELOAD=libc.so.6"),
        (format!("libc.so.6:{AGENT}"), "LD_PRELOAD=libc.so.6"),
        (
            format!("libc.so.6 {AGENT} libm.so.6"),
            "LD_PRELOAD=libc.so.6 libm.so.6",
        ),
    ] {
        let session = Session::new(false);
        let text = quiet(session.command("/usr/bin/env").env("LD_PRELOAD", before));
        assert!(text.lines().any(|line| line == after), "{text}");
    }
}

#[test]
fn without_children_a_library_with_a_longer_name_stays() {
    let folder = folder();
    let (agent, other) = (folder.join("agent.so"), folder.join("agent.so.bak"));
    std::fs::copy(AGENT, &agent).unwrap();
    let library = try_compile("library", "int unused;", &["-shared", "-fPIC"]).unwrap();
    std::fs::copy(library, &other).unwrap();
    let (agent, other) = (agent.display(), other.display());
    for before in [format!("{other}:{agent}"), format!("{agent} {other}")] {
        let session = Session::new(false);
        let text = quiet(session.command("/usr/bin/env").env("LD_PRELOAD", before));
        let after = format!("LD_PRELOAD={other}");
        assert!(text.lines().any(|line| line == after), "{text}");
    }
}

#[test]
fn environment_that_carries_the_session_is_passed_through() {
    let session = Session::new(true);
    let preload = format!("LD_PRELOAD={AGENT}:libc.so.6");
    let text = quiet(
        session
            .command("/bin/sh")
            .args(["-c", "A=1 exec env"])
            .env("LD_PRELOAD", &preload[11..]),
    );
    assert!(carries(&text, &session));
    assert!(text.lines().any(|line| line == preload), "{text}");
    // An environment that lost it gets it in front of what is there.
    let text = quiet(
        session
            .command("/bin/sh")
            .args(["-c", "exec env -i B=2 LD_PRELOAD=libc.so.6 env"]),
    );
    assert!(
        text.lines().any(|line| line == preload) && text.contains("B=2"),
        "{text}"
    );
}

/// Prints its environment and whether the agent is loaded.
const TELLER: &str = r#"
int main(void) {
    for (char **entry = environ; *entry; entry++) puts(*entry);
    char line[4096]; FILE *maps = fopen("/proc/self/maps", "r");
    while (fgets(line, sizeof line, maps)) fputs(line, stdout);
    return 0;
}
"#;

/// Runs `program` by a shell with the agent; gives back what it tells.
#[track_caller]
fn told(session: &Session, program: &Path, before: &str) -> String {
    let script = format!("{before} exec {}", program.display());
    quiet(session.command("/bin/sh").args(["-c", &script]))
}

#[test]
fn static_program_goes_without() {
    let Some(program) = try_compile("static", TELLER, &["-static"]) else {
        return;
    };
    let session = Session::new(true);
    let text = told(&session, &program, "");
    assert!(
        !text.contains("LD_PRELOAD") && !text.contains("SELVEDGE_SESSION"),
        "{text}"
    );
    assert_eq!(session.processes().len(), 1);
    let text = told(&session, &program, &format!("LD_PRELOAD={AGENT}:libc.so.6"));
    assert!(
        text.contains("LD_PRELOAD=libc.so.6\n") && !text.contains("SELVEDGE_SESSION"),
        "{text}"
    );
}

/// As [`TELLER`], with the note that the program joins recordings of a version.
fn noted(version: u32) -> String {
    format!(
        r#"__asm__(".pushsection .note.selvedge, \"a\", @note\n .balign 4\n .long 9, 8, 1\n"
            ".asciz \"Selvedge\"\n .balign 4\n .quad {version}\n .popsection");
        {TELLER}"#
    )
}

#[test]
fn static_program_that_joins_gets_the_session_only() {
    let Some(program) = try_compile("joins", &noted(VERSION), &["-static"]) else {
        return;
    };
    let other = try_compile("other", &noted(VERSION + 1), &["-static"]).unwrap();
    let session = Session::new(true);
    let named = format!("SELVEDGE_SESSION={}\n", session.name());
    for before in ["", "env -i", "env -u LD_PRELOAD"] {
        let text = told(
            &session,
            &program,
            &format!("exec {before} {} ;", program.display()),
        );
        assert!(
            !text.contains("LD_PRELOAD") && text.contains(&named),
            "{text}"
        );
    }
    let text = told(&session, &program, &format!("LD_PRELOAD={AGENT}:libc.so.6"));
    assert!(
        text.contains("LD_PRELOAD=libc.so.6\n") && text.contains(&named),
        "{text}"
    );
    let text = told(&session, &other, "");
    assert!(
        !text.contains("LD_PRELOAD") && !text.contains("SELVEDGE_SESSION"),
        "{text}"
    );
    // Where the signal was ignored before, the program is told so.
    let text = told(&session, &program, "trap '' PROF;");
    assert!(
        text.contains(&format!("{}:ignored\n", named.trim_end())),
        "{text}"
    );
}

#[test]
fn dynamic_program_that_would_join_takes_the_agent() {
    let program = try_compile("joins", &noted(VERSION), &[]).unwrap();
    let session = Session::new(true);
    let text = told(&session, &program, "");
    assert!(carries(&text, &session) && has_agent(&text), "{text}");
}

/// A program whose loader has another name: to the agent, it is one of another C library.
fn other_libc() -> PathBuf {
    let loader = folder().join("ld-musl-x86_64.so.1");
    symlink("/lib64/ld-linux-x86-64.so.2", &loader).unwrap();
    try_compile(
        "other",
        TELLER,
        &[&format!("-Wl,--dynamic-linker={}", loader.display())],
    )
    .unwrap()
}

#[test]
fn program_of_another_c_library_goes_without() {
    let session = Session::new(true);
    let text = told(&session, &other_libc(), "");
    assert!(
        !text.contains("LD_PRELOAD") && !text.contains("SELVEDGE_SESSION") && !has_agent(&text),
        "{text}"
    );
}

#[test]
fn script_is_judged_by_its_interpreter() {
    let other = other_libc();
    let session = Session::new(true);
    let run = |first_line: &str| {
        let script = folder().join("script");
        std::fs::write(&script, format!("#! {first_line}\n/usr/bin/env\n")).unwrap();
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        let command = format!("exec env -i {}", script.display());
        quiet(session.command("/bin/sh").args(["-c", &command]))
    };
    assert!(carries(&run("/bin/sh"), &session));
    assert!(carries(&run("/bin/sh -e"), &session));
    let told = run(&other.display().to_string());
    assert!(
        !told.contains("SELVEDGE_SESSION") && !has_agent(&told),
        "{told}"
    );
}

#[test]
fn program_for_32_bits_goes_without() {
    // No headers and no library: those for 32 bits are rarely installed.
    let body = r#"
        static int write_all(const char *text, int length) {
            int result;
            __asm__ volatile("int $0x80" : "=a"(result) : "a"(4), "b"(1), "c"(text), "d"(length) : "memory");
            return result;
        }
        __attribute__((used)) static void begin(char **words) {
            char **entry = words + (long)words[0] + 2;
            for (; *entry; entry++) {
                int length = 0;
                while ((*entry)[length]) length++;
                write_all(*entry, length);
                write_all("\n", 1);
            }
            __asm__ volatile("int $0x80" :: "a"(1), "b"(0));
        }
        __asm__(".globl _start\n_start: mov %esp, %eax\n push %eax\n call begin\n");
    "#;
    let flags = [
        "-m32",
        "-ffreestanding",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-fno-pic",
        "-fno-stack-protector",
    ];
    let Some(program) = try_compile("small32", body, &flags) else {
        return;
    };
    if Command::new(&program).output().is_err() {
        return eprintln!("skipped: this kernel does not run 32-bit programs");
    }
    let session = Session::new(true);
    let text = told(&session, &program, "A=1");
    assert!(
        text.contains("A=1\n")
            && !text.contains("SELVEDGE_SESSION")
            && !text.contains("LD_PRELOAD"),
        "{text}"
    );
}

#[test]
fn privileged_program_gets_its_environment_as_it_is() {
    let program = compile("privileged", TELLER);
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o4755)).unwrap();
    let session = Session::new(true);
    assert!(carries(&told(&session, &program, ""), &session));
    let text = told(
        &session,
        Path::new("/usr/bin/env"),
        &format!("exec env -i {} ;", program.display()),
    );
    assert!(!text.contains("SELVEDGE_SESSION"), "{text}");
}

#[test]
fn failed_exec_goes_on_recording() {
    let body = r#"
        int main(void) {
            char *none[] = { "none", 0 };
            for (int i = 0; i < 3; i++) if (execv("/no/such/program", none) != -1 || errno != ENOENT) return 1;
            if (execlp("no-such-program", "none", (char *)0) != -1 || errno != ENOENT) return 2;
            if (execv("/etc/passwd", none) != -1 || errno != EACCES) return 3;
            pid_t child; if (posix_spawn(&child, "/no/such/program", 0, 0, none, environ) != ENOENT) return 4;
            if (!(child = vfork())) { execv("/no/such/program", none); _exit(0); }
            int status; waitpid(child, &status, 0);
            burn(400);
            raise(SIGSTOP);
            return status;
        }"#;
    let program = compile("failing", body);
    is_sampled_in_three(|| {
        let session = Session::new(true);
        let mut child = session.command(&program).spawn().unwrap();
        let pid = child.id().cast_signed();
        loop {
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            if state.contains(") T ") {
                break;
            }
            assert!(!state.contains(") Z "), "ended: {:?}", child.wait());
            std::thread::yield_now();
        }
        let [process] = session.processes()[..] else {
            panic!("one process")
        };
        let sampled = samples(process);
        assert_eq!(process.cpu_end.load(SeqCst), 0, "not at its end");
        // SAFETY: a signal to our own child, which has not been waited for.
        #[allow(unsafe_code)]
        let continued = unsafe { libc::kill(pid, libc::SIGCONT) };
        assert_eq!(continued, 0);
        assert!(child.wait().unwrap().success());
        assert!(process.cpu_end.load(SeqCst) > 0);
        sampled
    });
}

#[test]
fn listed_arguments_all_arrive() {
    for count in [0, 1, 3, 4, 5, 6, 7, 50, 2000] {
        let list: String = (0..count).map(|at| format!("\"a{at}\", ")).collect();
        let body = format!(
            r#"int main(int count, char **arguments) {{
                char *one[] = {{ "ONE=1", 0 }};
                if (arguments[1][0] == 'l') execl("/bin/echo", "echo", {list} (char *)0);
                if (arguments[1][0] == 'p') execlp("echo", "echo", {list} (char *)0);
                execle("/bin/sh", "sh", "-c", "echo $ONE $0 \"$@\"", {list} (char *)0, one);
                return 1;
            }}"#
        );
        let program = compile("lister", &body);
        let expected: Vec<String> = (0..count).map(|at| format!("a{at}")).collect();
        let expected = expected.join(" ");
        let session = Session::new(true);
        for way in ["l", "p"] {
            assert_eq!(
                quiet(session.command(&program).arg(way)).trim_end(),
                expected
            );
        }
        let text = quiet(session.command(&program).arg("e"));
        let name = if count == 0 { "sh" } else { "" };
        assert_eq!(text.trim_end(), format!("1 {name}{expected}").trim_end());
    }
}

#[test]
fn session_of_another_recorder_is_left_alone() {
    let (outer, inner) = (Session::new(true), Session::new(true));
    let script = format!("SELVEDGE_SESSION={} exec env", inner.name());
    let text = quiet(outer.command("/bin/sh").args(["-c", &script]));
    assert!(carries(&text, &inner));
    assert_eq!((outer.processes().len(), inner.processes().len()), (1, 1));
}

#[test]
fn agent_that_is_gone_is_not_asked_for() {
    let copy = folder().join("agent.so");
    std::fs::copy(AGENT, &copy).unwrap();
    let session = Session::new(true);
    let script = format!("rm {}; exec env", copy.display());
    let mut shell = session.command("/bin/sh");
    // `rm` is started with the agent still there; the loader would complain to `env` of a missing file.
    let text = quiet(shell.args(["-c", &script]).env("LD_PRELOAD", &copy));
    assert!(
        !text.contains("SELVEDGE_SESSION") && !text.contains("LD_PRELOAD"),
        "{text}"
    );
}

#[test]
fn large_environments_are_changed() {
    for entries in [200, 300, 3000, 20000] {
        let body = format!(
            r#"static char text[20000][8]; static char *list[20001];
            int main(void) {{
                for (int i = 0; i < {entries}; i++) {{ sprintf(text[i], "V%d=", i); list[i] = text[i]; }}
                char *arguments[] = {{ "env", 0 }};
                return execve("/usr/bin/env", arguments, list);
            }}"#
        );
        let session = Session::new(true);
        let text = quiet(&mut session.command(compile("many", &body)));
        assert!(carries(&text, &session));
        assert_eq!(
            text.lines().filter(|line| line.starts_with('V')).count(),
            entries
        );
    }
}

#[test]
fn small_stack_is_enough_to_start_programs() {
    // 16 KiB is the least that glibc gives a thread (PTHREAD_STACK_MIN). Of that, the agent may take 4 KiB.
    let body = r#"
        static char text[300][8], *list[301];
        static char *way;
        static void *run(void *none) {
            char *arguments[] = { "env", 0 }; pid_t child; int status;
            if (!strcmp(way, "execve")) execve("/usr/bin/env", arguments, list);
            if (!strcmp(way, "execvpe")) execvpe("env", arguments, list);
            if (!strcmp(way, "posix_spawnp") && !posix_spawnp(&child, "env", 0, 0, arguments, list)) {
                waitpid(child, &status, 0);
                exit(status != 0);
            }
            exit(80);
        }
        int main(int count, char **arguments) {
            way = arguments[1];
            for (int i = 0; i < 300; i++) { sprintf(text[i], "V%d=", i); list[i] = text[i]; }
            pthread_attr_t attributes; pthread_t thread;
            pthread_attr_init(&attributes);
            pthread_attr_setstacksize(&attributes, 16384);
            if (pthread_create(&thread, &attributes, run, 0)) return 81;
            pthread_join(thread, 0);
            return 82;
        }"#;
    let program = compile("small", body);
    for way in ["execve", "execvpe", "posix_spawnp"] {
        let session = Session::new(true);
        let text = quiet(session.command(&program).arg(way));
        assert!(carries(&text, &session), "{way}");
    }
}

#[test]
fn children_of_vfork_leave_nothing_behind() {
    let body = r#"
        static char text[1000][8], *list[1001];
        static long pages(void) {
            long pages; FILE *sizes = fopen("/proc/self/statm", "r");
            if (fscanf(sizes, "%ld", &pages) != 1) return -1;
            fclose(sizes);
            return pages;
        }
        int main(void) {
            for (int i = 0; i < 1000; i++) { sprintf(text[i], "V%d=", i); list[i] = text[i]; }
            char *arguments[] = { "true", 0 };
            long before = 0; int status;
            for (int i = 0; i < 40; i++) {
                pid_t child = vfork();
                if (!child) { execve("/no/such/program", arguments, list); execve("/bin/true", arguments, list); _exit(1); }
                if (waitpid(child, &status, 0) != child || status) return 1;
                if (i == 2) before = pages();
            }
            return pages() > before ? 2 : 0;
        }"#;
    let session = Session::new(true);
    quiet(&mut session.command(compile("nests", body)));
    assert_eq!(session.processes().len(), 41);
}

#[test]
fn address_sanitizer_starts_behind_the_agent() {
    let body = r#"
        int main(int count, char **arguments) {
            char *volatile byte = malloc(1);
            burn(20);
            puts(getenv("ASAN_OPTIONS")); fflush(stdout);
            int use = count > 1 && !strcmp(arguments[1], "use");
            if (count > 1 && !use) { execv(arguments[1], arguments + 1); return 80; }
            free(byte);
            return use ? *byte : 0;
        }"#;
    let compiled = try_compile("asan", body, &["-fsanitize=address"]);
    let Some(program) = compiled.filter(|program| quiet_without_us(program)) else {
        return eprintln!("skipped: no AddressSanitizer here");
    };
    let session = Session::new(true);
    let script = |command: &str| {
        let command = command.replace('@', &program.display().to_string());
        let mut shell = session.command("/bin/sh");
        shell.args(["-c", &format!("{command}; exit $?")]);
        shell
    };
    // From a program that is not checked, with options of its own, and from one that is; another program is told nothing.
    let told = "verify_asan_link_order=0\n";
    assert_eq!(quiet(&mut script("@")), told);
    assert_eq!(
        quiet(&mut script("ASAN_OPTIONS=color=never @")),
        format!("color=never:{told}")
    );
    assert_eq!(quiet(&mut script("@ @")).matches(told).count(), 2);
    assert!(!quiet(&mut script("env")).contains("ASAN_OPTIONS"));
    // It works as ever.
    let output = script("@ use").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("heap-use-after-free"), "{said}");
}

/// Whether a program runs at all.
fn quiet_without_us(program: &Path) -> bool {
    let output = Command::new(program).env("ASAN_OPTIONS", "").output();
    output.is_ok_and(|output| output.status.success())
}
