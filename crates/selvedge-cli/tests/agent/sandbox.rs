//! Programs that forbid themselves system calls (seccomp): a handler that makes one would be their end.

use crate::programs::compile;
use crate::session::{Session, is_sampled_in_three, quiet, samples};
use std::sync::atomic::Ordering::SeqCst;

/// Filters, and CPU time without system calls.
const FILTERS: &str = r"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
// About a second, and no clock: strict mode takes the processor's away (PR_TSC_SIGSEGV in arch/x86/kernel/process.c).
static void spin(void) { for (volatile long i = 0; i < 400000000; i++) { } }
static void *spins(void *none) { spin(); syscall(SYS_exit, 0); return none; }
#define NR BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))
#define IF(call, what) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1), BPF_STMT(BPF_RET | BPF_K, what)
#define FILTER(name, ...) \
    static struct sock_filter name##_code[] = { NR, __VA_ARGS__ }; \
    static struct sock_fprog name = { sizeof name##_code / sizeof *name##_code, name##_code };
#define KILL SECCOMP_RET_KILL_PROCESS
FILTER(only_ends,
    IF(SYS_exit, SECCOMP_RET_ALLOW), IF(SYS_exit_group, SECCOMP_RET_ALLOW), IF(SYS_write, SECCOMP_RET_ALLOW),
    IF(SYS_rt_sigreturn, SECCOMP_RET_ALLOW), BPF_STMT(BPF_RET | BPF_K, KILL))
FILTER(not_ours,
    IF(SYS_timer_create, KILL), IF(SYS_timer_settime, KILL), IF(SYS_getpid, KILL), IF(SYS_gettid, KILL),
    IF(SYS_process_vm_readv, KILL), IF(SYS_sched_yield, KILL), IF(SYS_faccessat, KILL),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW))
";

#[test]
fn sandboxed_program_lives_and_is_not_sampled() {
    for enter in [
        "prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT)",
        "syscall(SYS_seccomp, SECCOMP_SET_MODE_STRICT, 0, 0)",
        "prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &only_ends)",
        "syscall(SYS_prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &only_ends)",
        "syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &only_ends)",
    ] {
        let body = format!(
            r"{FILTERS}
            int main(void) {{
                pthread_t thread;
                burn(20);
                if (pthread_create(&thread, 0, spins, 0)) return 1;
                burn(20);
                if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || {enter}) return 2;
                spin();
                syscall(SYS_exit, 0);
                return 3;
            }}"
        );
        let session = Session::new(true);
        quiet(&mut session.command(compile("boxed", &body)));
        let [process] = session.processes()[..] else {
            panic!("one process")
        };
        assert_eq!(process.sandboxed.load(SeqCst), 1, "{enter}");
        assert!(process.cpu_end.load(SeqCst) > 0, "{enter}");
    }
}

#[test]
fn children_in_a_sandbox_start_without_the_agent() {
    let body = format!(
        r#"{FILTERS}
        int main(int count, char **arguments) {{
            char *rest[] = {{ "env", 0 }}; pid_t child = -1; int status;
            burn(20);
            if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &not_ours)) return 2;
            if (!strcmp(arguments[1], "fork") && !(child = fork())) {{ execvp("env", rest); _exit(80); }}
            if (!strcmp(arguments[1], "vfork") && !(child = vfork())) {{ execvp("env", rest); _exit(80); }}
            if (!strcmp(arguments[1], "spawn") && posix_spawnp(&child, "env", 0, 0, rest, environ)) return 81;
            if (child == -1) execvp("env", rest);
            waitpid(child, &status, 0);
            return status != 0;
        }}"#
    );
    let program = compile("boxer", &body);
    for way in ["exec", "fork", "vfork", "spawn"] {
        let session = Session::new(true);
        let text = quiet(session.command(&program).arg(way));
        assert!(
            text.contains("PATH=")
                && !text.contains("SELVEDGE_SESSION")
                && !text.contains("LD_PRELOAD"),
            "{way}: {text}"
        );
        assert_eq!(session.processes().len(), 1, "{way}");
    }
}

#[test]
fn refused_sandbox_goes_on_being_sampled() {
    // What libseccomp and systemd ask to learn what the kernel can do, and a filter that it refuses.
    let body = format!(
        r"{FILTERS}
        int main(void) {{
            struct sock_fprog none = {{ 0, 0 }};
            if (syscall(SYS_seccomp, SECCOMP_SET_MODE_STRICT, 1, 0) != -1 || errno != EINVAL) return 1;
            if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, 0) != -1 || errno != EFAULT) return 2;
            if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, 0, 0, 0) != -1 || errno != EFAULT) return 3;
            if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &none, 0, 0) != -1) return 4;
            if (prctl(PR_GET_SECCOMP) != 0) return 5;
            burn(400);
            return 0;
        }}"
    );
    let program = compile("refused", &body);
    is_sampled_in_three(|| {
        let session = Session::new(true);
        quiet(&mut session.command(&program));
        let [process] = session.processes()[..] else {
            panic!("one process")
        };
        assert_eq!(process.sandboxed.load(SeqCst), 0);
        samples(process)
    });
}
