//! The program's own use of the profiling signal.

use crate::programs::compile;
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
            "{KERNEL}int main(void) {{ void *ours = kernel_handler(); long flags = kernel_flags(); {body} burn(400); if (kernel_handler() != ours || kernel_flags() != flags) return 99; return 0; }}"
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
