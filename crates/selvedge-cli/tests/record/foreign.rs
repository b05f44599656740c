//! Children that cannot take the agent run unharmed, and the loader has nothing to complain about.

use crate::harness::{Recording, Workshop, best_of_three, skip, within};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// Starts a program in every usual way from a recorded shell; it is to print `word` each time.
fn runs_unharmed(workshop: &Workshop, program: &Path, word: &str) -> Recording {
    let parent = workshop.program(
        "parent",
        "extern char **environ;
         int status(int pid) { int s; waitpid(pid, &s, 0); return WIFEXITED(s) ? WEXITSTATUS(s) : 100; }
         int main(int n, char **v) {
           int pid = fork(); if (pid == 0) { execv(v[1], v + 1); _exit(99); } if (status(pid) != 7) return 1;
           if (posix_spawn(&pid, v[1], 0, 0, v + 1, environ)) return 2; if (status(pid) != 7) return 3;
           if (WEXITSTATUS(system(v[1])) != 7) return 4;
           pid = vfork(); if (pid == 0) { execlp(v[1], v[1], (char *)0); _exit(99); } if (status(pid) != 7) return 5;
           execv(v[1], v + 1); return 6; }",
    );
    let recording = workshop.record().run([parent.as_path(), program]).exits(7);
    assert_eq!(recording.foreign_messages(), Vec::<&str>::new());
    assert_eq!(recording.stdout, word.repeat(5));
    recording
}

/// Says whether it was given a preload.
const SAYS: &str = "int main(void) { write(1, getenv(\"LD_PRELOAD\") ? \"preload \" : \"none \", getenv(\"LD_PRELOAD\") ? 8 : 5); _exit(7); }";

#[test]
fn static_child() {
    let workshop = Workshop::new();
    match workshop.compile("child", SAYS, &["-static"]) {
        Ok(child) => drop(runs_unharmed(&workshop, &child, "none ")),
        Err(_) => skip("static child", "no static C library here"),
    }
}

/// What a program that cannot take the agent uses is not the recorded program's, in whose place it runs.
#[test]
fn static_program_in_the_place_of_a_recorded_one() {
    let workshop = Workshop::new();
    let source = "BURNER(unseen) int main(void) { unseen(0.6); return 7; }";
    let Ok(child) = workshop.compile("child", source, &["-static"]) else {
        return skip("static program in the place", "no static C library here");
    };
    let parent = workshop.program(
        "parent",
        "BURNER(seen) int main(int n, char **v) { seen(0.4); execv(v[1], v + 1); return 6; }",
    );
    best_of_three(|| {
        let recording = workshop.record().run([&parent, &child]).exits(7);
        within("total", recording.total(), 0.38..=0.55);
        within(
            "seen",
            recording.stacks().through("seen").seconds(),
            0.3..=0.45,
        );
        let messages = &recording.stderr;
        assert!(messages.contains("child ("), "{messages}");
        assert!(messages.contains("cannot take the agent"), "{messages}");
    });
}

/// There, process ids mean others than here: nothing of another process may be read, counted or signalled by them.
#[test]
fn program_in_another_namespace_of_process_ids() {
    let permitted = Command::new("unshare").args(["-p", "-f", "true"]).output();
    if !permitted.is_ok_and(|output| output.status.success()) {
        return skip("namespace of process ids", "unshare may not make one here");
    }
    let workshop = Workshop::new();
    let program = workshop.program(
        "program",
        "BURNER(hot) int main(void) { hot(0.4); return 7; }",
    );
    best_of_three(|| {
        let recording = workshop
            .record()
            .options(&["-F", "250"])
            .run([
                "unshare".as_ref(),
                "-p".as_ref(),
                "-f".as_ref(),
                program.as_os_str(),
            ])
            .exits(7);
        within("total", recording.total(), 0.38..=0.5);
        within(
            "hot",
            recording.stacks().through("hot").seconds(),
            0.3..=0.45,
        );
        assert!(
            recording.stderr.contains("namespace"),
            "{}",
            recording.stderr
        );
    });
}

#[test]
fn musl_child() {
    let workshop = Workshop::new();
    let file = workshop.path("child.c");
    fs::write(&file, "#include <stdio.h>\n#include <stdlib.h>\nint main(void) { printf(getenv(\"LD_PRELOAD\") ? \"preload \" : \"none \"); return 7; }").unwrap();
    let child = workshop.path("child");
    let built = Command::new("musl-gcc")
        .arg(&file)
        .arg("-o")
        .arg(&child)
        .output();
    if built.is_ok_and(|output| output.status.success()) {
        runs_unharmed(&workshop, &child, "none ");
    } else {
        skip(
            "musl child",
            "no musl-gcc here; its predicate is tested by `child_with_another_loader`",
        );
    }
}

/// musl's loader loads the agent too, where a program is started past the agent's hooks.
#[test]
fn musl_child_that_gets_the_preload_all_the_same() {
    let workshop = Workshop::new();
    let file = workshop.path("child.c");
    // Calls hooked functions, which must find the real ones.
    let source = "#include <pthread.h>\n#include <signal.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <sys/wait.h>\n#include <unistd.h>
        void on(int signal) {} void *work(void *p) { return p; }
        int main(int n, char **v) { pthread_t t; int s;
          if (signal(SIGPROF, on) || pthread_create(&t, 0, work, 0)) return 1; pthread_join(t, 0);
          if (fork() == 0) { execl(\"/bin/sh\", \"sh\", \"-c\", \"exit 5\", (char *)0); _exit(99); } wait(&s);
          printf(\"%s %d \", getenv(\"LD_PRELOAD\") ? \"preload\" : \"none\", WEXITSTATUS(s)); return 7; }";
    fs::write(&file, source).unwrap();
    let child = workshop.path("child");
    let built = Command::new("musl-gcc")
        .arg(&file)
        .arg("-o")
        .arg(&child)
        .output();
    if !built.is_ok_and(|output| output.status.success()) {
        return skip("musl child with the preload", "no musl-gcc here");
    }
    let parent = workshop.program(
        "parent",
        "extern char **environ; int main(int n, char **v) { return syscall(SYS_execve, v[1], v + 1, environ); }",
    );
    let recording = workshop.record().run([&parent, &child]).exits(7);
    assert_eq!(recording.stdout, "preload 5 ");
    assert_eq!(recording.foreign_messages(), Vec::<&str>::new());
}

#[test]
fn child_with_another_loader() {
    // glibc's loader under musl's name: the predicate goes by the name, and the program can run here.
    let workshop = Workshop::new();
    let loader = workshop.path("ld-musl-x86_64.so.1");
    let own = "/lib64/ld-linux-x86-64.so.2";
    if fs::copy(own, &loader).is_err() {
        return skip(
            "child with another loader",
            "glibc's loader is not where it is expected",
        );
    }
    let option = format!("-Wl,--dynamic-linker={}", loader.display());
    let child = workshop.compile("child", SAYS, &[&option]).unwrap();
    runs_unharmed(&workshop, &child, "none ");
}

#[test]
fn child_of_32_bits() {
    let workshop = Workshop::new();
    // Without a library: `write(1, "32 ", 3); exit(7)`.
    let source = "void _start(void) {
        __asm__ volatile(\"int $0x80\" :: \"a\"(4), \"b\"(1), \"c\"(\"32 \"), \"d\"(3) : \"memory\");
        __asm__ volatile(\"int $0x80\" :: \"a\"(1), \"b\"(7)); for (;;); }";
    let file = workshop.path("child.c");
    fs::write(&file, source).unwrap();
    let child = workshop.path("child");
    let built = Command::new("cc")
        .args([
            "-m32",
            "-O1",
            "-nostdlib",
            "-static",
            "-fno-pie",
            "-no-pie",
            "-fno-stack-protector",
            "-o",
        ])
        .args([&child, &file])
        .output()
        .unwrap();
    if !built.status.success() {
        return skip("32-bit child", "the compiler makes no 32-bit programs");
    }
    if !Command::new(&child)
        .output()
        .is_ok_and(|output| output.status.code() == Some(7))
    {
        return skip("32-bit child", "the kernel runs no 32-bit programs");
    }
    runs_unharmed(&workshop, &child, "32 ");
}

#[test]
fn setuid_child() {
    let workshop = Workshop::new();
    // To another user where we may: then the loader really is in its secure mode, and hides the variable.
    let child = workshop.program(
        "child",
        "int main(void) { write(1, \"ran \", 4); _exit(7); }",
    );
    let _ = Command::new("chown").arg("65534").arg(&child).output();
    fs::set_permissions(&child, Permissions::from_mode(0o4755)).unwrap();
    fs::set_permissions(&workshop.folder, Permissions::from_mode(0o755)).unwrap();
    runs_unharmed(&workshop, &child, "ran ");
}

#[test]
fn existing_preload_is_preserved() {
    best_of_three(|| {
        let workshop = Workshop::new();
        let library = workshop
            .compile(
                "library.so",
                "__attribute__((constructor)) void start(void) { write(1, \"loaded \", 7); }",
                &["-shared", "-fPIC"],
            )
            .unwrap();
        let child = workshop.program(
            "child",
            "BURNER(in_child) int main(void) { in_child(0.2); _exit(7); }",
        );
        let parent = workshop.program(
        "parent",
        "int main(int n, char **v) { int s, pid = fork(); if (pid == 0) { execv(v[1], v + 1); _exit(99); } waitpid(pid, &s, 0); return WEXITSTATUS(s); }",
    );
        let recording = workshop
            .record()
            .options(&["-F", "250"])
            // Set by `env` for CMD, so that it is not loaded into the recorder.
            .run([
                "env".as_ref(),
                format!("LD_PRELOAD={}", library.display()).as_ref(),
                parent.as_os_str(),
                child.as_os_str(),
            ])
            .exits(7);
        assert_eq!(recording.stdout, "loaded loaded ");
        within(
            "in_child",
            recording.stacks().through("in_child").seconds(),
            0.14..=0.23,
        );

        // And where it was there before us. The recorder loads it too.
        let recording = workshop
            .record()
            .options(&["-F", "250"])
            .variable("LD_PRELOAD", &library)
            .run([&parent, &child])
            .exits(7);
        assert_eq!(recording.stdout, "loaded loaded loaded ");
        within(
            "in_child",
            recording.stacks().through("in_child").seconds(),
            0.14..=0.23,
        );
    });
}

#[test]
fn preload_of_others_is_left_to_a_child_that_cannot_take_ours() {
    let workshop = Workshop::new();
    let Ok(child) = workshop.compile(
        "child",
        "int main(void) { char *p = getenv(\"LD_PRELOAD\"); puts(p ? p : \"none\"); return 7; }",
        &["-static"],
    ) else {
        return skip("preload of others", "no static C library here");
    };
    let library = workshop
        .compile("library.so", "int unused;", &["-shared", "-fPIC"])
        .unwrap();
    let recording = workshop
        .record()
        .variable("LD_PRELOAD", &library)
        .run([
            "sh".as_ref(),
            "-c".as_ref(),
            "\"$0\"; exit $?".as_ref(),
            child.as_os_str(),
        ])
        .exits(7);
    assert_eq!(recording.stdout.trim(), library.display().to_string());
}

/// Records a program with every folder for the agent made unusable by `prepare`, in a mount namespace of its own.
fn without_folders(name: &str, mount: &str) {
    let workshop = Workshop::new();
    let child = workshop.program(
        "child",
        "BURNER(in_child) int main(void) { in_child(0.2); return 7; }",
    );
    let script = format!(
        "for f in /var/cache /tmp/home /tmp/selvedge-0 /dev/shm; do mkdir -p $f; {mount} || exit 77; done; exec \"$@\""
    );
    let recording = workshop
        .record()
        .options(&["-F", "250"])
        .variable("HOME", "/tmp/home")
        .variable("TMPDIR", "/tmp/home")
        .through(&["unshare", "-m", "sh", "-c", &script, "sh"])
        .run([
            "sh".as_ref(),
            "-c".as_ref(),
            "\"$0\"; exit $?".as_ref(),
            child.as_os_str(),
        ]);
    if recording.status == 77 || recording.stderr.contains("unshare") {
        return skip(name, "no mount namespaces here");
    }
    let recording = recording.exits(7);
    assert_eq!(recording.foreign_messages(), Vec::<&str>::new());
    within(
        "in_child",
        recording.stacks().through("in_child").seconds(),
        0.14..=0.23,
    );
}

#[test]
fn folders_that_cannot_be_executed_from() {
    best_of_three(|| {
        without_folders("noexec folders", "mount -t tmpfs -o noexec none $f");
    });
}

#[test]
fn folders_that_cannot_be_written() {
    best_of_three(|| {
        without_folders("read-only folders", "mount -t tmpfs -o ro none $f");
    });
}

#[test]
fn program_with_address_sanitizer() {
    let workshop = Workshop::new();
    let source = "BURNER(hot) int main(void) { char *volatile p = malloc(9); hot(0.2); free(p); puts(\"checked\"); return 0; }";
    let program = match workshop.compile("asan", source, &["-fsanitize=address"]) {
        Ok(program) => program,
        Err(_) => return skip("program with AddressSanitizer", "cc cannot link it here"),
    };
    let recording = workshop.record().run([&program]).exits(0);
    assert_eq!(recording.stdout, "checked\n");
    assert!(
        recording.foreign_messages().is_empty(),
        "{}",
        recording.stderr
    );
}

#[test]
fn damaged_unwind_information_is_told() {
    let workshop = Workshop::new();
    let program = workshop.program(
        "program",
        "BURNER(hot) int main(void) { hot(0.3); return 0; }",
    );
    let frames = workshop.path("frames");
    let objcopy = |option: String| {
        let status = Command::new("objcopy").arg(option).arg(&program).status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "objcopy failed"
        );
    };
    objcopy(format!("--dump-section=.eh_frame={}", frames.display()));
    let mut bytes = fs::read(&frames).unwrap();
    let half = bytes.len() / 2 / 4 * 4;
    bytes[half..].fill(0x3f);
    fs::write(&frames, bytes).unwrap();
    objcopy(format!("--update-section=.eh_frame={}", frames.display()));
    let recording = workshop.record().run([&program]).exits(0);
    let comments = &recording.profile().comments;
    let told = |comment: &&String| comment.contains("program: ") && comment.contains("damaged");
    assert!(comments.iter().find(told).is_some(), "{comments:?}");
    assert!(recording.stacks().through("hot").count() > 0);
}
