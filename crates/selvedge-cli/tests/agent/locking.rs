//! Programs that lock all their memory.

use crate::programs::compile;
use crate::session::{Session, quiet};

/// Kilobytes of the program that are locked, or that it has of anything else.
const LOCKED: &str = r#"
#include <sys/mman.h>
#include <sys/resource.h>
static long locked(void) {
    char line[256]; long kilobytes = -1; FILE *status = fopen("/proc/self/status", "r");
    while (fgets(line, sizeof line, status)) sscanf(line, "VmLck: %ld", &kilobytes);
    fclose(status);
    return kilobytes;
}
"#;

#[test]
fn locked_memory_is_the_programs_own() {
    let body = format!(
        r"{LOCKED}
        int main(void) {{
            if (locked() != 0) return 1;
            if (mlockall(MCL_CURRENT)) return 2;
            long current = locked();
            // All of the C library at least, and not the session's gigabyte.
            if (current < 1000 || current > 100000) return 3;
            char *later = mmap(0, 1 << 22, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (locked() != current) return 4;
            if (mlockall(MCL_CURRENT | MCL_FUTURE)) return 5;
            if (locked() < current + 4096 || locked() > 100000) return 6;
            current = locked();
            later = mmap(0, 1 << 22, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (locked() < current + 4096) return 7;
            if (munlockall() || locked() != 0) return 8;
            if (mlockall(MCL_CURRENT | 4) || locked() < 1000 || locked() > 100000) return 9;
            if (mlockall(64) != -1 || errno != EINVAL) return 10;
            burn(50);
            return 0;
        }}"
    );
    let session = Session::new(true);
    quiet(&mut session.command(compile("locks", &body)));
}

#[test]
fn limit_of_locked_memory_is_the_programs_own() {
    let body = format!(
        r"{LOCKED}
        #include <linux/capability.h>
        static void allow(long bytes) {{ struct rlimit limit = {{ bytes, bytes }}; setrlimit(RLIMIT_MEMLOCK, &limit); }}
        int main(void) {{
            allow(64 << 20);
            // As a user that is not root.
            struct __user_cap_header_struct header = {{ _LINUX_CAPABILITY_VERSION_3, 0 }};
            struct __user_cap_data_struct sets[2] = {{ 0 }};
            if (syscall(SYS_capset, &header, sets)) return 1;
            if (mlockall(MCL_CURRENT) || locked() < 1000 || locked() > 64 << 10) return 2;
            munlockall();
            allow(1 << 20);
            if (mlockall(MCL_CURRENT) != -1 || errno != ENOMEM || locked() != 0) return 3;
            allow(0);
            if (mlockall(MCL_CURRENT) != -1 || errno != EPERM) return 4;
            return 0;
        }}"
    );
    let session = Session::new(true);
    quiet(&mut session.command(compile("limited", &body)));
}
