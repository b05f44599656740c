/* Ways to another stack: setjmp and longjmp, from handlers on an alternate stack too, swapcontext, setcontext, a context
   that runs for the first time, one that ends into its successor, signals inside of contexts and of handlers. */
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

static volatile long sum;

__attribute__((noinline)) static long recurse(int depth)
{
    if (depth == 0)
        return sum += 1;
    return recurse(depth - 1) + depth;
}

static jmp_buf back;

__attribute__((noinline)) static void leave(int depth)
{
    if (depth == 0)
        longjmp(back, 1);
    leave(depth - 1);
    sum++;
}

static sigjmp_buf out;

static void nested(int signal)
{
    sum += signal;
    recurse(8);
}

static void handler(int signal)
{
    sum += signal;
    recurse(20);
    raise(SIGUSR2);
    recurse(20);
}

static void jumper(int signal)
{
    recurse(signal);
    siglongjmp(out, signal);
}

static ucontext_t main_context, contexts[3];

static void yield(int from, int to)
{
    recurse(30);
    swapcontext(&contexts[from], &contexts[to]);
    recurse(30);
}

static void odd(int number)
{
    for (int i = 0; i < 5; i++)
        yield(1, 2);
    raise(SIGUSR1);
    recurse(number);
}

static void even(int number)
{
    for (int i = 0; i < 5; i++)
        yield(2, 1);
    recurse(number);
    setcontext(&main_context);
}

static void work(void)
{
    static char words[16][16];
    for (int i = 0; i < 16; i++)
        snprintf(words[i], sizeof words[i], "%d %g", i * 7919 % 16, i / 7.0);
    qsort(words, 16, 16, (int (*)(const void *, const void *))strcmp);
}

int main(void)
{
    static char stack[65536], stacks[2][65536];
    for (int i = 0; i < 40; i++) {
        if (setjmp(back) == 0)
            leave(i);
        work();
    }
    stack_t alternate = { .ss_sp = stack, .ss_size = sizeof stack };
    sigaltstack(&alternate, NULL);
    struct sigaction action = { .sa_handler = handler, .sa_flags = SA_ONSTACK };
    sigaction(SIGUSR1, &action, NULL);
    action.sa_handler = nested;
    sigaction(SIGUSR2, &action, NULL);
    action.sa_handler = jumper;
    sigaction(SIGTERM, &action, NULL);
    raise(SIGUSR1);
    for (int i = 0; i < 3; i++) {
        if (sigsetjmp(out, 1) == 0)
            raise(SIGTERM);
        work();
    }
    volatile int returned = 0;
    getcontext(&main_context);
    if (returned++ == 0) {
        for (int i = 0; i < 2; i++) {
            getcontext(&contexts[1 + i]);
            contexts[1 + i].uc_stack.ss_sp = stacks[i];
            contexts[1 + i].uc_stack.ss_size = sizeof stacks[i];
            contexts[1 + i].uc_link = &main_context;
            makecontext(&contexts[1 + i], (void (*)(void))(i ? even : odd), 1, 40);
        }
        swapcontext(&contexts[0], &contexts[1]);
    }
    work();
    return returned == 2 && sum > 0 ? 0 : 1;
}
