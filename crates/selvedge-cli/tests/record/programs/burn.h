// What the programs under test share: functions that use a given amount of CPU time.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double seconds_of(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

// Defines a function that uses `seconds` of its thread's CPU time.
#define BURNER(name)                                                    \
  __attribute__((noinline)) void name(double seconds) {                 \
    double end = seconds_of(CLOCK_THREAD_CPUTIME_ID) + seconds;         \
    while (seconds_of(CLOCK_THREAD_CPUTIME_ID) < end)                   \
      for (volatile int i = 0; i < 20000; i++) {                        \
      }                                                                 \
  }

// Says how much CPU time the process has used. Call it last.
static inline void tell_cpu(void) {
  printf("cpu %.6f\n", seconds_of(CLOCK_PROCESS_CPUTIME_ID));
  fflush(stdout);
}
