// Reads clocks, which the vDSO does.
#include <stdio.h>
#include <time.h>

int main(void) {
  long later = 0;
  for (int i = 0; i < 100; i++) {
    struct timespec time;
    clock_gettime(i & 1 ? CLOCK_MONOTONIC : CLOCK_REALTIME, &time);
    later += time.tv_sec > 0;
  }
  printf("%ld\n", later);
}
