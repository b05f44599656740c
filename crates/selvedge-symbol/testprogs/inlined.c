#include <stdio.h>
#include <stdlib.h>

static inline __attribute__((always_inline)) int square(int x)
{
	volatile int y = x;
	return y * y;
}

static inline __attribute__((always_inline)) int squares(int n)
{
	int sum = 0;
	for (int i = 0; i < n; i++)
		sum += square(i);
	return sum;
}

__attribute__((noinline)) int work(int n)
{
	return squares(n) + 1;
}

static __attribute__((noinline)) int hidden(int n)
{
	volatile int m = n;
	return m + 1;
}

int main(int argc, char **argv)
{
	(void)argv;
	printf("%d\n", work(argc) + hidden(argc));
	puts(getenv("HOME") ? "home" : "none");
	return 0;
}
