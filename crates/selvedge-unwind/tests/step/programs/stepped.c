/* What a walk meets: lazily bound calls, a frameless library function that calls back, recursion, aligned frames,
   dynamic allocas, signal handlers on either stack, non-local jumps, tail calls. */
#include <alloca.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int compare(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

__attribute__((noinline)) static long recurse(int depth, long sum)
{
    if (depth == 0)
        return sum + getppid() * 0;
    return recurse(depth - 1, sum + depth) + depth;
}

__attribute__((noinline)) static long aligned(int n)
{
    _Alignas(64) volatile char block[128];
    char *more = alloca(n);
    memset(more, n, n);
    block[n & 127] = more[n / 2];
    return block[n & 127] + recurse(3, n);
}

static volatile sig_atomic_t seen;
static jmp_buf back;

static void handler(int signal)
{
    seen += signal;
    recurse(2, seen);
}

static void jumper(int signal)
{
    seen += signal;
    siglongjmp(back, 1);
}

static void at_exit(void)
{
    puts("bye");
}

__attribute__((noinline)) static void signals(void)
{
    static char stack[65536];
    stack_t alternate = { .ss_sp = stack, .ss_size = sizeof stack };
    sigaltstack(&alternate, NULL);
    struct sigaction action = { .sa_handler = handler };
    sigaction(SIGUSR1, &action, NULL);
    action.sa_flags = SA_ONSTACK;
    sigaction(SIGUSR2, &action, NULL);
    raise(SIGUSR1);
    raise(SIGUSR2);
    action.sa_handler = jumper;
    sigaction(SIGTERM, &action, NULL);
    if (sigsetjmp(back, 1) == 0)
        raise(SIGTERM);
}

int main(int argc, char **argv)
{
    char *words[] = { "warp", "weft", "selvedge", "loom", "shuttle", "heddle", "reed", "bobbin" };
    struct timespec now;
    long sum = 0;
    atexit(at_exit);
    qsort(words, sizeof words / sizeof *words, sizeof *words, compare);
    for (unsigned i = 0; i < sizeof words / sizeof *words; i++)
        printf("%s %u %g\n", words[i], i, i / 3.0);
    sum += recurse(10, argc);
    sum += aligned(40);
    signals();
    for (int i = 0; i < 3; i++)
        clock_gettime(CLOCK_MONOTONIC, &now), sum += now.tv_nsec;
    setjmp(back);
    free(strdup(argv[0]));
    fprintf(stderr, "%ld %d\n", sum, (int)seen);
    return 0;
}
