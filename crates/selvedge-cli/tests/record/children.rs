//! Children: followed whichever way they are made.

use crate::harness::{Recording, Workshop, best_of_three, within};
use std::process::Command;

/// Records a parent made from `source`, which starts `child`, a program that burns 0.3 s and exits with 7, by the path in
/// `v[1]`; the parent is to exit with the child's status.
fn with_child(options: &[&str], source: &str) -> Recording {
    let workshop = Workshop::new();
    let child = workshop.program(
        "child",
        "BURNER(in_child) int main(void) { in_child(0.3); return 7; }",
    );
    let parent = workshop.program(
        "parent",
        &format!(
            "extern char **environ;
             int status(int pid) {{ int s; waitpid(pid, &s, 0); return WIFEXITED(s) ? WEXITSTATUS(s) : 100; }}
             BURNER(in_parent) BURNER(in_child)
             {source}"
        ),
    );
    let recording = workshop
        .record()
        .options(&["-F", "250"])
        .options(options)
        .run([parent, child])
        .exits(7);
    assert_eq!(recording.foreign_messages(), Vec::<&str>::new());
    recording
}

#[track_caller]
fn assert_followed(recording: &Recording) {
    let stacks = recording.stacks().through("in_child");
    within("in_child", stacks.seconds(), 0.24..=0.33);
    assert_eq!(stacks.labels("pid").len(), 1);
    assert_eq!(
        stacks.labels("process").into_iter().collect::<Vec<_>>(),
        ["child"]
    );
}

#[test]
fn fork() {
    best_of_three(|| {
        let recording = with_child(
        &[],
        "int main(void) { in_parent(0.1); int pid = fork(); if (pid == 0) { in_child(0.3); _exit(7); }
           in_parent(0.2); return status(pid); }",
    );
        let stacks = recording.stacks();
        within(
            "in_child",
            stacks.through("in_child").seconds(),
            0.24..=0.33,
        );
        within(
            "in_parent",
            stacks.through("in_parent").seconds(),
            0.24..=0.33,
        );
        let pids = |function| stacks.through(function).labels("pid");
        assert!(pids("in_child").is_disjoint(&pids("in_parent")));
    });
}

#[test]
fn fork_of_a_thread_while_others_burn() {
    best_of_three(|| {
        let recording = with_child(
        &[],
        "volatile int stop; void *busy(void *p) { while (!stop) in_parent(0.01); return p; }
         void *forker(void *p) { int pid = fork(); if (pid == 0) { in_child(0.3); _exit(7); }
           return (void *)(long)status(pid); }
         int main(void) { pthread_t a, b; void *s; pthread_create(&a, 0, busy, 0); pthread_create(&b, 0, forker, 0);
           pthread_join(b, &s); stop = 1; pthread_join(a, 0); return (long)s; }",
    );
        within(
            "in_child",
            recording.stacks().through("in_child").seconds(),
            0.24..=0.33,
        );
    });
}

#[test]
fn fork_and_exec() {
    best_of_three(|| {
        assert_followed(&with_child(
            &[],
            "int main(int n, char **v) { int pid = fork(); if (pid == 0) { execv(v[1], v + 1); _exit(99); } return status(pid); }",
        ));
    });
}

#[test]
fn vfork_and_exec() {
    best_of_three(|| {
        let recording = with_child(
        &[],
        "int main(int n, char **v) { in_parent(0.1); int pid = vfork(); if (pid == 0) { execve(v[1], v + 1, environ); _exit(99); }
           in_parent(0.2); return status(pid); }",
    );
        assert_followed(&recording);
        within(
            "in_parent",
            recording.stacks().through("in_parent").seconds(),
            0.24..=0.33,
        );
    });
}

#[test]
fn vfork_and_exit_leaves_the_parent_recorded() {
    best_of_three(|| {
        let recording = with_child(
            &[],
            "int main(int n, char **v) { in_parent(0.1); int pid = vfork();
           if (pid == 0) { execl(\"/no/such/program\", \"x\", (char *)0); _exit(7); }
           in_parent(0.2); return status(pid); }",
        );
        within(
            "in_parent",
            recording.stacks().through("in_parent").seconds(),
            0.24..=0.33,
        );
    });
}

#[test]
fn posix_spawn() {
    best_of_three(|| {
        assert_followed(&with_child(
            &[],
            "int main(int n, char **v) { int pid; if (posix_spawn(&pid, v[1], 0, 0, v + 1, environ)) return 98; return status(pid); }",
        ));
    });
}

#[test]
fn posix_spawnp_with_an_environment_of_its_own() {
    best_of_three(|| {
        assert_followed(&with_child(
            &[],
            "int main(int n, char **v) { char *e[] = {\"A=1\", 0}; int pid;
           if (posix_spawnp(&pid, v[1], 0, 0, v + 1, e)) return 98; return status(pid); }",
        ));
    });
}

#[test]
fn system_call_of_the_shell() {
    best_of_three(|| {
        assert_followed(&with_child(
            &[],
            "int main(int n, char **v) { return WEXITSTATUS(system(v[1])); }",
        ));
    });
}

#[test]
fn popen() {
    best_of_three(|| {
        assert_followed(&with_child(
            &[],
            "int main(int n, char **v) { FILE *f = popen(v[1], \"r\"); return WEXITSTATUS(pclose(f)); }",
        ));
    });
}

#[test]
fn env_i() {
    best_of_three(|| {
        assert_followed(&with_child(
            &[],
            "int main(int n, char **v) { execlp(\"env\", \"env\", \"-i\", v[1], (char *)0); return 99; }",
        ));
    });
}

#[test]
fn exec_with_an_empty_environment() {
    best_of_three(|| {
        assert_followed(&with_child(
            &[],
            "int main(int n, char **v) { char *e[] = {0}; execve(v[1], v + 1, e); return 99; }",
        ));
    });
}

#[test]
fn list_forms_of_exec_pass_all_arguments() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let child = workshop.program(
        "child",
        "BURNER(in_child) int main(int n, char **v) { in_child(0.1); for (int i = 1; i < n; i++) printf(\"%s \", v[i]); puts(getenv(\"A\") ?: \"-\"); return n; }",
    );
        let source = |call: &str| {
            format!(
                "int main(int n, char **v) {{ setenv(\"A\", \"own\", 1); char *e[] = {{\"A=given\", 0}}; {call}; return 99; }}"
            )
        };
        for (call, environment) in [
            (
                "execl(v[1], \"x\", \"1\", \"2\", \"3\", \"4\", \"5\", \"6\", \"7\", \"8\", \"9\", (char *)0)",
                "own",
            ),
            (
                "execlp(v[1], \"x\", \"1\", \"2\", \"3\", \"4\", \"5\", \"6\", \"7\", \"8\", \"9\", (char *)0)",
                "own",
            ),
            (
                "execle(v[1], \"x\", \"1\", \"2\", \"3\", \"4\", \"5\", \"6\", \"7\", \"8\", \"9\", (char *)0, e)",
                "given",
            ),
        ] {
            let parent = workshop.program("parent", &source(call));
            let recording = workshop
                .record()
                .options(&["-F", "250"])
                .run([&parent, &child])
                .exits(10);
            assert_eq!(
                recording.stdout,
                format!("1 2 3 4 5 6 7 8 9 {environment}\n"),
                "{call}"
            );
            within(
                call,
                recording.stacks().through("in_child").seconds(),
                0.05..=0.12,
            );
        }
    });
}

#[test]
fn python_subprocess_with_closed_descriptors() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let child = workshop.program(
            "child",
            "BURNER(in_child) int main(void) { in_child(0.3); return 7; }",
        );
        let script = "import subprocess, sys; sys.exit(subprocess.run([sys.argv[1]], close_fds=True, env={}).returncode)";
        if Command::new("python3").arg("--version").output().is_err() {
            return crate::harness::skip("python subprocess", "no python3 here");
        }
        let recording = workshop
            .record()
            .options(&["-F", "250"])
            .run([
                "python3".as_ref(),
                "-c".as_ref(),
                script.as_ref(),
                child.as_os_str(),
            ])
            .exits(7);
        assert_followed(&recording);
    });
}

#[test]
fn child_with_all_descriptors_closed() {
    best_of_three(|| {
        assert_followed(&with_child(
            &[],
            "int main(int n, char **v) { int pid = fork(); if (pid == 0) { for (int i = 0; i < 1024; i++) close(i); execv(v[1], v + 1); _exit(99); } return status(pid); }",
        ));
    });
}

#[test]
fn shell_pipeline() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let program = workshop.program(
        "child",
        "BURNER(in_child) int main(void) { in_child(0.2); int c; while ((c = getchar()) != EOF) putchar(c); putchar('x'); return 7; }",
    );
        let script = format!("'{0}' </dev/null | '{0}' | '{0}'", program.display());
        let recording = workshop
            .record()
            .options(&["-F", "250"])
            .run(["sh", "-c", &script])
            .exits(7);
        assert_eq!(recording.stdout, "xxx");
        let stacks = recording.stacks().through("in_child");
        within("in_child", stacks.seconds(), 0.53..=0.65);
        assert_eq!(stacks.labels("pid").len(), 3);
    });
}

#[test]
fn children_that_outlive_their_parent_are_followed() {
    best_of_three(|| {
        let recording = with_child(
        &["-d", "20s"],
        "int main(int n, char **v) { int p[2]; pipe(p); if (fork() == 0) { if (fork() == 0) { in_child(0.3); write(p[1], \"x\", 1); pause(); } _exit(0); }
           wait(0); char c; read(p[0], &c, 1); return 7; }",
    );
        within(
            "in_child",
            recording.stacks().through("in_child").seconds(),
            0.23..=0.33,
        );
    });
}

#[test]
fn no_children_records_the_program_only() {
    best_of_three(|| {
        for source in [
            "int main(int n, char **v) { in_parent(0.3); int pid = fork(); if (pid == 0) { execv(v[1], v + 1); _exit(99); } return status(pid); }",
            "int main(int n, char **v) { in_parent(0.3); int pid = fork(); if (pid == 0) { in_child(0.3); _exit(7); } return status(pid); }",
            "int main(int n, char **v) { in_parent(0.3); return WEXITSTATUS(system(v[1])); }",
        ] {
            let recording = with_child(&["--no-children"], source);
            within(
                "in_parent",
                recording.stacks().through("in_parent").seconds(),
                0.24..=0.33,
            );
            assert_eq!(recording.stacks().through("in_child").count(), 0);
            assert!(recording.total() < 0.45, "{}", recording.total());
        }
    });
}

#[test]
fn no_children_hides_the_agent_from_the_environment() {
    let workshop = Workshop::new();
    let recording = workshop
        .record()
        .options(&["--no-children"])
        .run(["env"])
        .exits(0);
    assert!(
        !recording.stdout.contains("LD_PRELOAD"),
        "{}",
        recording.stdout
    );
    assert!(
        !recording.stdout.contains("SELVEDGE_SESSION"),
        "{}",
        recording.stdout
    );
}

/// Records of processes are used again: the order of their numbers is not that of time.
#[test]
fn processes_that_become_one_program_after_another_are_recorded_to_their_ends() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let program = workshop.program(
            "program",
            "BURNER(hot)
             int main(int n, char **v) { int left = atoi(v[1]); hot(0.02);
               if (left == 0) return 0;
               char next[8]; sprintf(next, \"%d\", left - 1); execl(v[0], v[0], next, (char *)0); return 6; }",
        );
        let parent = workshop.program(
            "parent",
            "int main(int n, char **v) { int s;
               for (int i = 0; i < 60; i++) {
                 if (fork() == 0) { execl(v[1], v[1], \"3\", (char *)0); _exit(99); }
                 if (i >= 3) { wait(&s); if (s) return 5; } }
               while (wait(&s) > 0) if (s) return 5;
               return 7; }",
        );
        let recording = workshop
            .record()
            .options(&["-F", "1000"])
            .run([parent, program])
            .exits(7);
        // 60 processes, 4 programs in each, 20 ms in each of these, of which a tick or two are in no sample.
        let seconds = recording.stacks().through("hot").seconds();
        within("hot", seconds, 3.0..=5.2);
        assert!(!recording.stderr.contains("late"), "{}", recording.stderr);
    });
}
