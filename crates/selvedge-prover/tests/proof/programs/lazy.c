// Calls many functions of the C library for the first time, through a procedure linkage table that is bound lazily, with
// callbacks, long jumps, realigned frames and signal handlers, one of them on an alternate stack.
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static volatile long sum;
static jmp_buf back;

static int compare(const void *one, const void *other) {
  sum++;
  return *(const int *)one - *(const int *)other;
}

__attribute__((noinline)) static int recurse(int n) {
  volatile int here = n;
  return n == 0 ? 0 : recurse(n - 1) + here;
}

__attribute__((noinline)) static void realigned(int n) {
  _Alignas(64) char wide[128];
  char *room = __builtin_alloca(16 + n);
  memset(room, n, 16 + n);
  snprintf(wide, sizeof wide, "%d", room[3]);
  sum += strlen(wide);
}

static void handle(int signal) { sum += recurse(signal % 7); }

static void jump_out(int signal) {
  recurse(signal % 5);
  siglongjmp(back, 1);
}

int main(void) {
  int numbers[40];
  for (int i = 0; i < 40; i++) numbers[i] = (i * 7919) % 101;
  qsort(numbers, 40, sizeof *numbers, compare);
  for (int i = 0; i < 5; i++) realigned(i * 10);

  stack_t alternate = {.ss_sp = malloc(65536), .ss_size = 65536};
  sigaltstack(&alternate, NULL);
  struct sigaction action = {.sa_handler = handle, .sa_flags = SA_ONSTACK};
  sigaction(SIGUSR1, &action, NULL);
  action.sa_flags = 0;
  sigaction(SIGUSR2, &action, NULL);
  raise(SIGUSR1);
  raise(SIGUSR2);
  action.sa_flags = SA_ONSTACK;
  action.sa_handler = jump_out;
  sigaction(SIGUSR1, &action, NULL);
  for (volatile int times = 0; times < 2; times++)
    if (sigsetjmp(back, 1) == 0) raise(SIGUSR1);

  char *end;
  sum += strtol("123", &end, 10) + recurse(40) + atoi(getenv("NUMBER") ? getenv("NUMBER") : "4");
  time_t begin = 1e9;
  char text[100];
  strftime(text, sizeof text, "%F", gmtime(&begin));
  printf("%s %ld %d\n", text, sum, numbers[3]);
}
