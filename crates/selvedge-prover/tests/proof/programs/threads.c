// Threads that begin and end while others work, with a stack of coroutines in one of them.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

static ucontext_t outer, inner;
static long switched;

__attribute__((noinline)) static long work(int n) {
  volatile long here = n;
  return n == 0 ? 0 : work(n - 1) + here;
}

static void coroutine(void) {
  for (int i = 0; i < 3; i++) {
    switched += work(5 + i);
    swapcontext(&inner, &outer);
  }
}

static void *run(void *argument) {
  long sum = 0;
  for (long i = 0; i < 3; i++) sum += work(10 + (long)argument);
  if (argument == NULL) {
    char *stack = malloc(65536);
    getcontext(&inner);
    inner.uc_stack.ss_sp = stack;
    inner.uc_stack.ss_size = 65536;
    inner.uc_link = &outer;
    makecontext(&inner, coroutine, 0);
    for (int i = 0; i < 4; i++) swapcontext(&outer, &inner);
    free(stack);
  }
  return (void *)sum;
}

int main(void) {
  pthread_t threads[3];
  long sum = 0;
  for (long round = 0; round < 2; round++) {
    for (long i = 0; i < 3; i++) pthread_create(&threads[i], NULL, run, (void *)i);
    for (long i = 0; i < 3; i++) {
      void *one;
      pthread_join(threads[i], &one);
      sum += (long)one;
    }
  }
  printf("%ld %ld\n", sum, switched);
}
