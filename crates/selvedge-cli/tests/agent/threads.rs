//! Threads begin and end their records themselves.

use crate::programs::compile;
use crate::session::{Session, is_sampled_in_three, quiet, samples};
use std::sync::atomic::Ordering::SeqCst;

/// The number of timers of the process.
const TIMERS: &str = r#"
static int timers(void) {
    int count = 0; char line[256]; FILE *file = fopen("/proc/self/timers", "r");
    while (file && fgets(line, sizeof line, file)) count += !strncmp(line, "ID:", 3);
    if (file) fclose(file);
    return count;
}
"#;

#[test]
fn short_threads_leave_no_record_and_no_timer() {
    let body = r#"
        static void *run(void *argument) { return argument; }
        int main(void) {
            for (int i = 0; i < 100000; i += 20) {
                pthread_t threads[20];
                for (int j = 0; j < 20; j++) if (pthread_create(threads + j, 0, run, 0)) return 1;
                for (int j = 0; j < 20; j++) pthread_join(threads[j], 0);
            }
            printf("%d", timers());
            return 0;
        }"#;
    let program = compile("short", &format!("{TIMERS}{body}"));
    let session = Session::new(true);
    assert_eq!(
        quiet(&mut session.command(program)),
        "1",
        "the main thread's timer"
    );
    let [process] = session.processes()[..] else {
        panic!("one process")
    };
    assert_eq!(process.threads.load(SeqCst), 100_001);
    assert_eq!(process.threads_refused.load(SeqCst), 0);
    assert_eq!(session.threads(), 1, "the main thread's record");
}

#[test]
fn thread_gets_its_argument_returns_its_result_and_is_sampled() {
    let body = r#"
        static void *run(void *argument) { burn(400); return (char *)argument + 1; }
        static void *leave(void *argument) { burn(20); pthread_exit((char *)argument + 2); }
        static void *stay(void *argument) { for (;;) pause(); }
        int main(void) {
            pthread_t first, second, third; void *result;
            if (pthread_create(&first, 0, run, (void *)40) || pthread_create(&second, 0, leave, (void *)50)) return 1;
            if (pthread_create(&third, 0, stay, 0)) return 2;
            pthread_join(first, &result); if (result != (void *)41) return 3;
            pthread_join(second, &result); if (result != (void *)52) return 4;
            pthread_cancel(third); pthread_join(third, &result); if (result != PTHREAD_CANCELED) return 5;
            printf("%d", timers());
            return 0;
        }"#;
    let program = compile("worker", &format!("{TIMERS}{body}"));
    is_sampled_in_three(|| {
        let session = Session::new(true);
        assert_eq!(quiet(&mut session.command(&program)), "1");
        let [process] = session.processes()[..] else {
            panic!("one process")
        };
        assert_eq!(session.threads(), 1);
        samples(process)
    });
}

#[test]
fn destructors_of_the_program_run_before_the_record_ends() {
    let body = r"
        static pthread_key_t key; static int timers_there, rounds;
        static void destroy(void *value) {
            timers_there += timers() == 2;
            if (++rounds < 3) pthread_setspecific(key, value);
        }
        static void *run(void *argument) { pthread_setspecific(key, argument); return 0; }
        int main(void) {
            pthread_t thread;
            pthread_key_create(&key, destroy);
            if (pthread_create(&thread, 0, run, &key)) return 1;
            pthread_join(thread, 0);
            return rounds == 3 && timers_there == 3 ? 0 : 2;
        }";
    let program = compile("destroyer", &format!("{TIMERS}{body}"));
    let session = Session::new(true);
    quiet(&mut session.command(program));
    assert_eq!(session.threads(), 1);
}

#[test]
fn thread_on_the_smallest_stack_begins() {
    let body = r"
        #include <limits.h>
        static void *run(void *argument) { burn(50); return argument; }
        int main(void) {
            pthread_attr_t attributes; pthread_t thread;
            pthread_attr_init(&attributes);
            if (pthread_attr_setstacksize(&attributes, 16384)) return 1;
            if (pthread_create(&thread, &attributes, run, 0)) return 2;
            return pthread_join(thread, 0);
        }";
    let session = Session::new(true);
    quiet(&mut session.command(compile("small", body)));
    assert_eq!(session.threads(), 1);
}

#[test]
fn fork_from_a_thread_starts_with_one_record() {
    let body = r#"
        static void *run(void *argument) {
            pid_t child = fork();
            if (!child) { burn(20); printf("%d", timers()); fflush(stdout); _exit(0); }
            int status; waitpid(child, &status, 0);
            return (void *)(long)status;
        }
        int main(void) {
            pthread_t thread; void *status;
            if (pthread_create(&thread, 0, run, 0)) return 1;
            pthread_join(thread, &status);
            return status != 0;
        }"#;
    let program = compile("fork_thread", &format!("{TIMERS}{body}"));
    let session = Session::new(true);
    assert_eq!(quiet(&mut session.command(program)), "1");
    assert_eq!(session.processes().len(), 2);
}
