/* Frames that few functions have: aligned by r10, in main too; constructors and destructors, code in .init and .fini;
   hand-written code without unwind information; lazily bound calls. */
#include <alloca.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static volatile long sum;

__asm__(".section .init,\"ax\",@progbits\n nop\n push %rbx\n xor %ebx,%ebx\n pop %rbx\n"
        ".section .fini,\"ax\",@progbits\n nop\n push %rbx\n xor %ebx,%ebx\n pop %rbx\n.text");

/* Calls its argument with a table of jumps before, as code without unwind information does. */
__asm__(".text\n.p2align 4\n.type call_plain,@function\ncall_plain:\n"
        " push %rbp\n mov %rsp,%rbp\n push %rbx\n sub $24,%rsp\n mov %rdi,%rbx\n"
        " and $3,%esi\n lea table_of_plain(%rip),%rax\n movslq (%rax,%rsi,4),%rcx\n add %rcx,%rax\n jmp *%rax\n"
        "0: nop\n1: call *%rbx\n jmp 4f\n2: nop\n3: call *%rbx\n nop\n"
        "4: add $24,%rsp\n pop %rbx\n pop %rbp\n ret\n.size call_plain,.-call_plain\n"
        ".section .rodata\ntable_of_plain: .long 0b-table_of_plain,1b-table_of_plain,2b-table_of_plain,3b-table_of_plain\n.text");
long call_plain(long (*function)(void), int way) __asm__("call_plain");

static long count(void)
{
    return ++sum;
}

__attribute__((constructor)) static void before(void)
{
    sum += getenv("PATH") != NULL;
}

__attribute__((destructor)) static void after(void)
{
    sum += getenv("HOME") != NULL;
}

__attribute__((noinline)) static long aligned(int n)
{
    __attribute__((aligned(64))) volatile char block[128];
    char *more = alloca(n);
    memset(more, n, n);
    block[n & 127] = more[n / 2];
    if (n > 16)
        return block[n & 127] + aligned(n - 16);
    return block[n & 127] + count();
}

int main(int argc, char **argv)
{
    __attribute__((aligned(64))) volatile double block[16];
    for (int i = 0; i < 200; i++) {
        block[i & 15] = strtod("1.5", NULL) + argc;
        sum += aligned(16 + i) + (long)block[i & 15];
    }
    for (int i = 0; i < 16; i++)
        sum += call_plain(count, i);
    printf("%ld %s\n", sum, argv[0]);
    return 0;
}
