//! The program's own use of the profiling signal.

use crate::programs::{compile, try_compile};
use crate::session::{Session, is_sampled_in_three, quiet, samples};
use std::os::unix::process::ExitStatusExt;

/// The kernel's idea of the signal's action.
const KERNEL: &str = r"
static void *kernel_handler(void) {
    struct { void *handler; long flags; void *restorer; long mask; } action;
    syscall(SYS_rt_sigaction, SIGPROF, 0, &action, 8);
    return action.handler;
}
static long kernel_flags(void) {
    struct { void *handler; long flags; void *restorer; long mask; } action;
    syscall(SYS_rt_sigaction, SIGPROF, 0, &action, 8);
    return action.flags;
}
static volatile int called;
static void handler(int signal) { called += signal == SIGPROF; }
static void three(int signal, siginfo_t *info, void *context) { called += info->si_pid == getpid() && context; }
";

#[track_caller]
fn run(name: &str, body: &str) {
    let program = compile(
        name,
        &format!(
            "{KERNEL}int main(void) {{ void *ours = kernel_handler(); long flags = kernel_flags(); {body} burn(400); if (kernel_handler() != ours || (kernel_flags() ^ flags) & ~SA_RESTART) return 99; return 0; }}"
        ),
    );
    is_sampled_in_three(|| {
        let session = Session::new(true);
        quiet(&mut session.command(&program));
        let [process] = session.processes()[..] else {
            panic!("one process")
        };
        samples(process)
    });
}

#[test]
fn sigaction_keeps_and_gives_back_the_programs_action() {
    run(
        "sigaction",
        r"
        struct sigaction old, new = { .sa_sigaction = three, .sa_flags = SA_SIGINFO | SA_NODEFER };
        sigaddset(&new.sa_mask, SIGUSR1);
        if (sigaction(SIGPROF, 0, &old) || old.sa_handler != SIG_DFL) return 1;
        if (sigaction(SIGPROF, &new, &old) || old.sa_handler != SIG_DFL) return 2;
        if (sigaction(SIGPROF, 0, &old) || old.sa_sigaction != three) return 3;
        if (old.sa_flags != new.sa_flags || !sigismember(&old.sa_mask, SIGUSR1)) return 4;
        kill(getpid(), SIGPROF);
        if (called != 1) return 5;
        burn(50);
        if (called != 1) return 6;
        ",
    );
}

#[test]
fn signal_and_its_relatives_keep_the_programs_handler() {
    run(
        "signals",
        r"
        if (signal(SIGPROF, handler) != SIG_DFL) return 1;
        raise(SIGPROF); if (called != 1) return 2;
        if (signal(SIGPROF, SIG_IGN) != handler) return 3;
        raise(SIGPROF); if (called != 1) return 4;
        if (ssignal(SIGPROF, handler) != SIG_IGN) return 5;
        if (sysv_signal(SIGPROF, SIG_DFL) != handler) return 6;
        if (sigset(SIGPROF, handler) != SIG_DFL) return 7;
        if (sigset(SIGPROF, SIG_HOLD) != handler) return 8;
        raise(SIGPROF); if (called != 1) return 9;
        if (sigset(SIGPROF, handler) != SIG_HOLD) return 10;
        if (called != 2) return 11;
        if (siginterrupt(SIGPROF, 1)) return 12;
        if (sigignore(SIGPROF) || signal(SIGPROF, SIG_DFL) != SIG_IGN) return 13;
        ",
    );
}

#[test]
fn other_signals_are_the_programs_own() {
    run(
        "others",
        r"
        struct sigaction old;
        if (signal(SIGUSR1, handler) != SIG_DFL || sigaction(SIGUSR1, 0, &old) || old.sa_handler != handler) return 1;
        errno = 0;
        if (sigaction(SIGKILL, &old, 0) != -1 || errno != EINVAL) return 2;
        if (signal(12345, handler) != SIG_ERR || errno != EINVAL) return 3;
        ",
    );
}

#[test]
fn default_action_still_ends_the_program() {
    let program = compile(
        "default",
        "int main(void) { burn(20); raise(SIGPROF); return 0; }",
    );
    let session = Session::new(true);
    let status = session.command(program).status().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGPROF));
}

#[test]
fn system_calls_are_not_interrupted() {
    let body = r"
        #include <sys/time.h>
        static void *run(void *argument) { char byte; return (void *)(long)(read(*(int *)argument, &byte, 1) != 1); }
        int main(void) {
            int ends[2]; pthread_t thread; void *failed;
            if (pipe(ends) || siginterrupt(SIGPROF, 1)) return 1;
            if (pthread_create(&thread, 0, run, ends)) return 2;
            burn(100);
            for (int i = 0; i < 100; i++) syscall(SYS_tgkill, getpid(), getpid(), 0);
            if (write(ends[1], `x`, 1) != 1) return 3;
            pthread_join(thread, &failed);
            return failed != 0;
        }";
    let session = Session::new(true);
    quiet(&mut session.command(compile("calls", &body.replace('`', "\""))));
}

/// Sets the action of the signal that `argv[1]` names, and becomes or starts `argv[3]` as `argv[2]` says.
const PASSER: &str = r#"
int main(int count, char **arguments) {
    signal(SIGPROF, !strcmp(arguments[1], "ignored") ? SIG_IGN : !strcmp(arguments[1], "handled") ? exit : SIG_DFL);
    char **rest = arguments + 3, *way = arguments[2]; pid_t child = 0; int status;
    if (!strcmp(way, "fork")) child = fork();
    if (!strcmp(way, "vfork") && !(child = vfork())) { execve("/no/such/program", rest, environ); execve(*rest, rest, environ); _exit(80); }
    if (!strcmp(way, "spawn") && posix_spawn(&child, *rest, 0, 0, rest, environ)) return 81;
    if (!child) { execv("/no/such/program", rest); execv(*rest, rest); return 82; }
    waitpid(child, &status, 0);
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}
"#;

/// Says whether the signal is ignored, as the program and the kernel see it, and sends it.
const SENDER: &str = r#"
int main(void) {
    struct sigaction action;
    sigaction(SIGPROF, 0, &action);
    printf("%s\n", action.sa_handler == SIG_IGN ? "ignored" : action.sa_handler == SIG_DFL ? "default" : "handled");
    fflush(stdout);
    raise(SIGPROF);
    return 0;
}
"#;

/// Runs the passer; gives back what the sender says, and whether it lives.
fn passed(
    action: &str,
    way: &str,
    passer: &std::path::Path,
    sender: &std::path::Path,
) -> (String, bool) {
    let session = Session::new(true);
    let output = session
        .command(passer)
        .args([action, way])
        .arg(sender)
        .output()
        .unwrap();
    let code = output
        .status
        .code()
        .unwrap_or(128 + output.status.signal().unwrap_or(0));
    assert!(
        [0, 128 + libc::SIGPROF].contains(&code),
        "{action}, {way}: {output:?}"
    );
    (String::from_utf8(output.stdout).unwrap(), code == 0)
}

#[test]
fn ignored_signal_is_inherited_and_no_other_is() {
    let passer = compile("passer", PASSER);
    let dynamic = compile("sender", SENDER);
    let alone = try_compile("alone", SENDER, &["-static"]);
    for way in ["exec", "fork", "vfork", "spawn"] {
        for sender in [Some(&dynamic), alone.as_ref()].into_iter().flatten() {
            let kind = sender.display();
            for action in ["default", "handled"] {
                let (said, lives) = passed(action, way, &passer, sender);
                assert_eq!(
                    (said.as_str(), lives),
                    ("default\n", false),
                    "{action}, {way}, {kind}"
                );
            }
            // docs/TROUBLESHOOTING.md: the C library starts the child, and the kernel knows our handler only.
            if way == "spawn" && Some(sender) == alone.as_ref() {
                continue;
            }
            let (said, lives) = passed("ignored", way, &passer, sender);
            assert_eq!((said.as_str(), lives), ("ignored\n", true), "{way}, {kind}");
        }
    }
    // A mark is taken back by a program that does not ignore the signal any more.
    let session = Session::new(true);
    let mut chain = session.command(&passer);
    let output = chain
        .args(["ignored", "exec"])
        .arg(&passer)
        .args(["default", "exec"])
        .arg(&dynamic)
        .output();
    assert_eq!(
        String::from_utf8_lossy(&output.unwrap().stdout),
        "default\n"
    );
}

#[test]
fn failing_execs_at_the_same_time_go_on_recording() {
    let program = compile(
        "crowd",
        r#"
        static void *run(void *none) {
            char *arguments[] = { "none", 0 };
            for (int i = 0; i < 2000; i++) execve("/no/such/program", arguments, environ);
            return none;
        }
        int main(void) {
            pthread_t threads[4];
            for (int i = 0; i < 4; i++) pthread_create(threads + i, 0, run, 0);
            for (int i = 0; i < 4; i++) pthread_join(threads[i], 0);
            struct { void *handler; long flags; void *restorer; long mask; } action;
            syscall(SYS_rt_sigaction, SIGPROF, 0, &action, 8);
            burn(100);
            return action.handler == SIG_IGN;
        }"#,
    );
    let session = Session::new(true);
    quiet(&mut session.command(&program));
}

#[test]
fn handler_interrupts_system_calls_as_the_program_says() {
    for (flags, result) in [("0", "-1"), ("SA_RESTART", "1")] {
        let body = format!(
            r#"static int ends[2];
            static void wake(int signal) {{ }}
            static void late(int signal) {{ write(ends[1], "x", 1); }}
            int main(void) {{
                struct sigaction action = {{ .sa_handler = wake, .sa_flags = {flags} }};
                char byte; pid_t self = getpid();
                if (pipe(ends) || sigaction(SIGPROF, &action, 0)) return 1;
                struct sigaction alarmed = {{ .sa_handler = late, .sa_flags = SA_RESTART }};
                sigaction(SIGALRM, &alarmed, 0);
                if (!fork()) {{ usleep(200000); kill(self, SIGPROF); usleep(200000); kill(self, SIGALRM); _exit(0); }}
                errno = 0;
                if (read(ends[0], &byte, 1) != {result} || ({result} < 0 && errno != EINTR)) return 2;
                wait(0);
                return 0;
            }}"#
        );
        let session = Session::new(true);
        quiet(&mut session.command(compile("interrupted", &body)));
    }
}

#[test]
fn handler_for_one_signal_is_called_once() {
    let body = r"
        static volatile int called;
        static void handler(int signal) {
            struct sigaction now; sigaction(SIGPROF, 0, &now);
            called += 1 + 10 * (now.sa_handler != SIG_DFL);
        }
        int main(void) {
            struct sigaction action = { .sa_handler = handler, .sa_flags = SA_RESETHAND };
            sigaction(SIGPROF, &action, 0);
            burn(100);
            if (called) return 1;
            raise(SIGPROF);
            if (called != 1) return 2;
            burn(100);
            raise(SIGPROF);
            return 3;
        }";
    let session = Session::new(true);
    let status = session.command(compile("once", body)).status().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGPROF), "{status}");
}

#[test]
fn queued_signal_ends_the_program_as_a_plain_one() {
    let body = r"
        int main(int count, char **arguments) {
            union sigval value = { .sival_ptr = (void *)strtoul(arguments[1], 0, 0) };
            burn(20);
            sigqueue(getpid(), SIGPROF, value);
            return 3;
        }";
    let program = compile("queued", body);
    for value in ["0", "1", "0x10000", "0x7fff12345678"] {
        let session = Session::new(true);
        let status = session.command(&program).arg(value).status().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGPROF), "{value}: {status}");
    }
}

#[test]
fn waiting_for_any_signal_is_not_for_ours() {
    let body = r#"
        static void *other(void *none) { burn(100); kill(getpid(), SIGUSR1); return none; }
        int main(void) {
            sigset_t all; siginfo_t info; int signal = 0; pthread_t thread;
            struct timespec half = { .tv_nsec = 300000000 }, none = { 0 };
            sigfillset(&all);
            sigprocmask(SIG_BLOCK, &all, 0);
            alarm(20);
            // One of ours is pending each time.
            burn(50); pthread_create(&thread, 0, other, 0);
            if (sigwait(&all, &signal) || signal != SIGUSR1) return 1;
            pthread_join(thread, 0);
            burn(50); pthread_create(&thread, 0, other, 0);
            if (sigwaitinfo(&all, &info) != SIGUSR1 || info.si_signo != SIGUSR1) return 2;
            pthread_join(thread, 0);
            burn(50);
            if (sigtimedwait(&all, 0, &half) != -1 || errno != EAGAIN) return 3;
            burn(50);
            if (sigtimedwait(&all, &info, &none) != -1 || errno != EAGAIN) return 4;
            // Its own of the same number.
            burn(50); kill(getpid(), SIGPROF);
            if (sigwait(&all, &signal) || signal != SIGPROF) return 5;
            return 0;
        }"#;
    let session = Session::new(true);
    quiet(&mut session.command(compile("waits", body)));
}
