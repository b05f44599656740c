//! What cannot be done is said in a line, with what to do; exit statuses are a shell's.

use crate::harness::{Workshop, best_of_three, skip, within};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

/// The one line that was printed; the exit status must be `status`, and nothing written.
fn refusal(workshop: &Workshop, options: &[&str], command: &[&str], status: i32) -> String {
    let recording = workshop
        .record()
        .options(options)
        .run(command)
        .exits(status);
    assert!(recording.profile.is_none(), "a profile was written");
    assert_eq!(recording.stdout, "");
    recording.stderr.clone()
}

#[test]
fn missing_program() {
    let workshop = Workshop::new();
    let said = refusal(&workshop, &[], &["no-such-program-here"], 127);
    assert!(
        said.contains("no-such-program-here") && said.lines().count() == 1,
        "{said}"
    );
    refusal(&workshop, &[], &["/no/such/program"], 127);
}

#[test]
fn program_that_is_not_executable() {
    let workshop = Workshop::new();
    fs::write(workshop.path("data"), "text").unwrap();
    let said = refusal(&workshop, &[], &["./data"], 126);
    assert!(said.contains("data") && said.lines().count() == 1, "{said}");
}

#[test]
fn static_program_is_told_the_two_lines_that_add_the_library() {
    let workshop = Workshop::new();
    let program = workshop.compile("program", "int main(void) { return 0; }", &["-static"]);
    let Ok(_) = program else {
        return skip("static program", "no static C library here");
    };
    let said = refusal(&workshop, &[], &["./program"], 2);
    assert!(said.contains("statically linked"), "{said}");
    assert!(
        said.contains("cargo add selvedge-profile") && said.contains("init_from_env"),
        "{said}"
    );
}

#[test]
fn program_of_another_libc_is_told_so() {
    let workshop = Workshop::new();
    workshop
        .compile(
            "program",
            "int main(void) { return 0; }",
            &["-Wl,--dynamic-linker=/lib/ld-musl-x86_64.so.1"],
        )
        .unwrap();
    let said = refusal(&workshop, &[], &["./program"], 2);
    assert!(
        said.contains("ld-musl-x86_64") && said.contains("selvedge-profile"),
        "{said}"
    );
}

#[test]
fn setuid_program_is_told_so() {
    let workshop = Workshop::new();
    let program = workshop.program("program", "int main(void) { return 0; }");
    fs::set_permissions(&program, Permissions::from_mode(0o4755)).unwrap();
    let said = refusal(&workshop, &[], &["./program"], 2);
    assert!(
        said.contains("set-user-id") && said.lines().count() == 1,
        "{said}"
    );
}

#[test]
fn program_for_another_machine_is_told_so() {
    let workshop = Workshop::new();
    // The header of a 32-bit ELF file for i386.
    let mut header = vec![0_u8; 52];
    header[..7].copy_from_slice(b"\x7fELF\x01\x01\x01");
    header[16..20].copy_from_slice(&[2, 0, 3, 0]);
    fs::write(workshop.path("program"), header).unwrap();
    fs::set_permissions(workshop.path("program"), Permissions::from_mode(0o755)).unwrap();
    let said = refusal(&workshop, &[], &["./program"], 2);
    assert!(
        said.contains("64-bit") && said.lines().count() == 1,
        "{said}"
    );
}

#[test]
fn unwritable_output_is_refused_before_the_program_runs() {
    let workshop = Workshop::new();
    let said = refusal(
        &workshop,
        &["-o", "/proc/no/such/folder/x.pb.gz"],
        &["sh", "-c", "echo ran"],
        2,
    );
    assert!(
        said.contains("/proc/no/such/folder") && said.contains("-o"),
        "{said}"
    );
    let said = refusal(&workshop, &["-o", "/"], &["sh", "-c", "echo ran"], 2);
    assert!(said.contains("folder"), "{said}");
}

/// Without `/proc`, and with one in which our number is another process's or nobody's.
#[test]
fn proc_that_does_not_show_us_is_told_so() {
    let workshop = Workshop::new();
    for (options, script) in [
        ("-m", "mount -t tmpfs none /proc || exit 77; exec \"$@\""),
        ("-fp", "\"$@\"; exit $?"),
    ] {
        let through = ["unshare", options, "sh", "-c", script, "sh"];
        let recording = workshop.record().through(&through).run(["true"]);
        if recording.status == 77 || recording.stderr.contains("unshare") {
            return skip("no /proc", "no namespaces here");
        }
        let recording = recording.exits(2);
        let said = &recording.stderr;
        assert!(
            said.contains("mount -t proc") && said.lines().count() == 1,
            "{said}"
        );
        assert!(recording.profile.is_none(), "a profile was written");
    }
}

#[test]
fn rates_and_signals_that_cannot_be_are_refused() {
    let workshop = Workshop::new();
    for options in [
        ["-F", "0"],
        ["-F", "-1"],
        ["-F", "nan"],
        ["-F", "50001"],
        ["--signal", "SIGKILL"],
        ["--signal", "99"],
        ["-d", "never"],
        ["--engine", "steam"],
    ] {
        let said = refusal(&workshop, &options, &["sh", "-c", "echo ran"], 2);
        assert!(!said.is_empty(), "{options:?}");
    }
}

const BURN: &str = "BURNER(hot) int main(void) { hot(0.4); return 9; }";

#[test]
fn timers_refused_by_a_limit_fall_back_to_itimer_with_a_warning() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let program = workshop.program("program", BURN);
        let recording = workshop
            .record()
            .options(&["-F", "250"])
            .run([
                "bash".as_ref(),
                "-c".as_ref(),
                "ulimit -i 0; exec \"$0\"".as_ref(),
                program.as_os_str(),
            ])
            .exits(9);
        within(
            "hot",
            recording.stacks().through("hot").seconds(),
            0.32..=0.45,
        );
        assert!(
            recording.stderr.contains("itimer engine"),
            "{}",
            recording.stderr
        );
        assert!(
            recording.stderr.contains("ulimit -i"),
            "{}",
            recording.stderr
        );
    });
}

/// A program that forbids itself `timer_create` (and `setitimer`, where asked), then becomes another.
const FORBID: &str = r#"
    #include <linux/filter.h>
    #include <linux/seccomp.h>
    #include <sys/prctl.h>
    int main(int n, char **v) {
      int also = atoi(v[1]);
      struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_timer_create, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, also ? SYS_setitimer : SYS_timer_create, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      };
      struct sock_fprog program = {5, code};
      prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
      if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) { perror("seccomp"); return 77; }
      execv(v[2], v + 2);
      return 99;
    }"#;

#[test]
fn timers_refused_by_seccomp_fall_back_to_itimer_with_a_warning() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let forbid = workshop.program("forbid", FORBID);
        let program = workshop.program("program", BURN);
        let recording = workshop
            .record()
            .options(&["-F", "250"])
            .through(&[&forbid.to_string_lossy(), "0"])
            .run([program])
            .exits(9);
        within(
            "hot",
            recording.stacks().through("hot").seconds(),
            0.32..=0.45,
        );
        assert!(recording.stderr.contains("itimer"), "{}", recording.stderr);
        assert!(recording.stderr.contains("refused"), "{}", recording.stderr);
    });
}

#[test]
fn all_timers_refused_leaves_the_program_unharmed_and_accounts_for_its_time() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let forbid = workshop.program("forbid", FORBID);
        let program = workshop.program("program", BURN);
        let recording = workshop
            .record()
            .options(&["-F", "250"])
            .through(&[&forbid.to_string_lossy(), "1"])
            .run([program])
            .exits(9);
        within("[unsampled]", recording.row("[unsampled]"), 0.38..=0.6);
        assert!(recording.stderr.contains("refused"), "{}", recording.stderr);
    });
}

#[test]
fn small_address_space_runs_unprofiled_and_is_told_why() {
    let workshop = Workshop::new();
    let program = workshop.program("program", BURN);
    let recording = workshop
        .record()
        .run([
            "bash".as_ref(),
            "-c".as_ref(),
            "ulimit -v 200000; exec \"$0\"".as_ref(),
            program.as_os_str(),
        ])
        .exits(9);
    assert_eq!(recording.foreign_messages(), Vec::<&str>::new());
    assert_eq!(recording.stacks().through("hot").count(), 0);
    // `bash` itself was recorded: what became of it is not.
    let recording = workshop
        .record()
        .through(&["bash", "-c", "ulimit -v 700000; exec \"$@\"", "x"])
        .run([program]);
    assert!(
        recording.status == 9 && recording.stderr.contains("ulimit -v")
            || recording.status == 2 && recording.stderr.contains("address space"),
        "{}: {}",
        recording.status,
        recording.stderr
    );
}

/// A program, the status of its refusal, and what is said of it.
#[test]
fn programs_that_cannot_be_run_are_called_as_typed_and_told_why() {
    let workshop = Workshop::new();
    let executable = |name: &str, text: &str| {
        fs::write(workshop.path(name), text).unwrap();
        fs::set_permissions(workshop.path(name), Permissions::from_mode(0o755)).unwrap();
    };
    executable("script", "#!/nonexist/interp\n");
    executable("windows", "#!/bin/sh\r\n");
    executable("odd", "#!/etc/passwd\n");
    fs::create_dir(workshop.path("folder")).unwrap();
    for (program, status, words) in [
        ("./folder", 126, &["./folder", "folder;"][..]),
        (".", 126, &[".: is a folder"]),
        ("..", 126, &["..: is a folder"]),
        (
            "./script",
            127,
            &["./script", "interpreter /nonexist/interp is missing"],
        ),
        ("./windows", 127, &["interpreter /bin/sh\\r is missing"]),
        ("./odd", 126, &["interpreter /etc/passwd is not executable"]),
        ("/etc/passwd/x", 126, &["/etc/passwd/x", "Not a directory"]),
        ("./no/such", 127, &["./no/such", "No such file"]),
        (
            "a\x1b[31m\nb",
            127,
            &["a\\u{1b}[31m\\nb: command not found"],
        ),
        ("", 127, &["not found"]),
    ] {
        let said = refusal(&workshop, &[], &[program], status);
        assert_eq!(said.lines().count(), 1, "{program:?}: {said}");
        for words in words {
            assert!(said.contains(words), "{program:?}: {said}");
        }
    }
    let doctor = crate::streams::shell(&workshop, "$S doctor .");
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(said.contains(".: is a folder"), "{said}");
}

#[test]
fn too_few_descriptors_are_told_so() {
    let workshop = Workshop::new();
    for limit in 4..20 {
        let script = format!("ulimit -n {limit}; $S record -q -o a.pb.gz -- true");
        let output = crate::streams::shell(&workshop, &script);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.code() == Some(0) {
            assert_eq!(said, "", "{limit}");
            assert!(workshop.path("a.pb.gz").exists(), "{limit}");
        } else {
            assert_eq!(output.status.code(), Some(2), "{limit}: {said}");
            assert!(
                said.contains("ulimit -n") && said.lines().count() == 1,
                "{limit}: {said}"
            );
        }
    }
    assert!(workshop.path("a.pb.gz").exists(), "never enough");
}
