//! How processes begin, fork and end.

use crate::programs::{compile, try_compile};
use crate::session::{AGENT, Session, is_sampled_in_three, quiet, samples};
use selvedge_sample::region::session;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::SeqCst;

#[test]
fn process_attaches_and_is_sampled() {
    let program = compile("burner", "int main(void) { burn(600); return 0; }");
    is_sampled_in_three(|| {
        let session = Session::new(true);
        let child = session.command(&program).spawn().unwrap();
        let pid = child.id();
        assert!(child.wait_with_output().unwrap().status.success());
        let [process] = session.processes()[..] else {
            panic!("one process")
        };
        assert_eq!(process.pid.load(SeqCst), pid);
        assert!(process.cpu_end.load(SeqCst) >= process.cpu_start.load(SeqCst) + 590_000_000);
        assert!(process.maps_len.load(SeqCst) > 0);
        assert_eq!(process.threads.load(SeqCst), 1);
        samples(process)
    });
}

#[test]
fn process_stays_away_where_anything_is_not_as_expected() {
    let recording = Session::new(true);
    let truthful = |session: &Session, value: String| {
        quiet(session.command("/bin/true").env("SELVEDGE_SESSION", value));
        assert!(session.processes().is_empty());
    };
    let name = recording.name();
    for wrong in [
        name.replace("9abc", "9abd"),
        name.replace("/fd/", "/fdx/"),
        format!("{name}0"),
        name[..name.len() - 17].to_owned(),
        "/etc/passwd:0000000000000000".to_owned(),
        "/dev/null:0000000000000000".to_owned(),
        ":".to_owned(),
        String::new(),
        "x".repeat(5000),
    ] {
        truthful(&recording, wrong);
    }
    for state in [session::IDLE, session::STOPPED] {
        recording.region.header.state.store(state, SeqCst);
        truthful(&recording, name.clone());
    }
    recording
        .region
        .header
        .state
        .store(session::RECORDING, SeqCst);
    recording.region.header.version.store(99, SeqCst);
    truthful(&recording, name);
}

#[test]
fn program_with_little_address_space_keeps_it() {
    let session = Session::new(true);
    quiet(
        session
            .command("/bin/sh")
            .args(["-c", "ulimit -v 1000000; exec /bin/true"]),
    );
    assert_eq!(
        session.processes().len(),
        1,
        "the shell, and nothing after the limit"
    );
}

#[test]
fn program_with_closed_descriptors_is_left_as_it_is() {
    // Its exit status is made of the descriptors that are open.
    let program = compile(
        "descriptors",
        r"int main(void) {
            int sum = 0;
            for (int fd = 0; fd < 256; fd++) if (fcntl(fd, F_GETFD) >= 0) sum = sum * 31 + fd + 1;
            return sum & 255;
        }",
    );
    let script = format!("exec {} 0<&- 1>&- 2>&-", program.display());
    let plain = Command::new("/bin/sh")
        .args(["-c", &script])
        .status()
        .unwrap();
    let session = Session::new(true);
    let recorded = session
        .command("/bin/sh")
        .args(["-c", &script])
        .status()
        .unwrap();
    assert_eq!(recorded, plain);
    assert_eq!(session.processes().len(), 2);
}

#[test]
fn fork_child_has_a_record_of_its_own() {
    let program = compile(
        "forker",
        r#"int main(void) {
            pid_t child = fork();
            burn(child ? 400 : 500);
            if (!child) _exit(0);
            int status; waitpid(child, &status, 0);
            printf("%d", child);
            return status;
        }"#,
    );
    is_sampled_in_three(|| {
        let session = Session::new(true);
        let child: u32 = quiet(&mut session.command(&program)).parse().unwrap();
        let [parent, forked] = session.processes()[..] else {
            panic!("two processes")
        };
        assert_eq!(forked.pid.load(SeqCst), child);
        // `_exit` notes the end as well.
        assert!(forked.cpu_end.load(SeqCst) >= 490_000_000);
        samples(forked).min(samples(parent))
    });

    let alone = Session::new(false);
    quiet(&mut alone.command(&program));
    assert_eq!(alone.processes().len(), 1, "children are not followed");
}

#[test]
fn child_of_a_fork_without_handlers_has_a_record_of_its_own() {
    let body = r#"int main(void) {
        pid_t child = _Fork();
        struct sigaction action;
        if (!child) { burn(400); _exit(sigaction(SIGPROF, 0, &action) || action.sa_handler != SIG_DFL); }
        int status; waitpid(child, &status, 0);
        printf("%d", child);
        return status != 0;
    }"#;
    let Some(program) = try_compile("forker", body, &["-Werror=implicit-function-declaration"])
    else {
        return eprintln!("skipped: _Fork is glibc's since 2.34");
    };
    is_sampled_in_three(|| {
        let session = Session::new(true);
        let child: u32 = quiet(&mut session.command(&program)).parse().unwrap();
        let [_, forked] = session.processes()[..] else {
            panic!("two processes")
        };
        assert_eq!(forked.pid.load(SeqCst), child);
        assert!(forked.cpu_end.load(SeqCst) >= 390_000_000);
        samples(forked)
    });
}

#[test]
fn ends_are_noted_however_they_come() {
    for end in [
        "exit(0)",
        "_exit(0)",
        "_Exit(0)",
        "quick_exit(0)",
        "return 0",
        "pthread_exit(0)",
    ] {
        let program = compile("ender", &format!("int main(void) {{ burn(20); {end}; }}"));
        let session = Session::new(true);
        quiet(&mut session.command(&program));
        let [process] = session.processes()[..] else {
            panic!("one process")
        };
        assert!(process.cpu_end.load(SeqCst) > 10_000_000, "{end}");
    }
}

#[test]
fn ends_pass_through_other_libraries() {
    for name in ["_exit", "_Exit", "quick_exit"] {
        let body = format!(
            "void {name}(int status) {{ write(1, \"other\", 5); syscall(SYS_exit_group, status + 1); __builtin_unreachable(); }}"
        );
        let other = try_compile("other.so", &body, &["-shared", "-fPIC"]).unwrap();
        let program = compile(
            "ender",
            &format!("int main(void) {{ burn(20); {name}(-1); }}"),
        );
        let session = Session::new(true);
        let mut command = session.command(&program);
        command.env("LD_PRELOAD", format!("{AGENT}:{}", other.display()));
        assert_eq!(quiet(&mut command), "other");
        let [process] = session.processes()[..] else {
            panic!("one process")
        };
        assert!(process.cpu_end.load(SeqCst) > 10_000_000, "{name}");
    }
}

#[test]
fn programs_after_the_recording_go_without() {
    let session = Session::new(true);
    let script = "read go; exec /usr/bin/env";
    let mut shell = session.command("/bin/sh");
    let mut shell = shell
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    while session.processes().is_empty() {
        std::thread::yield_now();
    }
    session.region.header.state.store(session::STOPPED, SeqCst);
    drop(shell.stdin.take());
    let output = shell.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        !text.contains("SELVEDGE_SESSION") && !text.contains("LD_PRELOAD"),
        "{text}"
    );
}
