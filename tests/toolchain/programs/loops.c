// Loops of all shapes, without calls.
#include <stdio.h>
#include <stdlib.h>

__attribute__((noinline)) static long sum(const long *a, long n)
{
	long s = 0;
	for (long i = 0; i < n; i++)
		s = s * 3 + a[i];
	return s;
}

__attribute__((noinline)) static double matrix(int n, const double *a, const double *b, double *c)
{
	for (int i = 0; i < n; i++)
		for (int j = 0; j < n; j++) {
			double s = 0;
			for (int k = 0; k < n; k++)
				s += a[i * n + k] * b[k * n + j];
			c[i * n + j] = s;
		}
	return c[n * n - 1];
}

__attribute__((noinline)) static unsigned collatz(unsigned long n)
{
	unsigned steps = 0;
	while (n != 1) {
		n = n & 1 ? 3 * n + 1 : n / 2;
		steps++;
	}
	return steps;
}

__attribute__((noinline)) static long crossing(long n, int into)
{
	long a = n, b = 1;
	if (into)
		goto middle;
top:
	a += b;
	b ^= a >> 3;
middle:
	if (--n > 0) {
		b += 2;
		if (b & 4)
			goto top;
		a -= 1;
		goto middle;
	}
	return a * 31 + b;
}

static long sometimes(const long *a, long n)
{
	long s = 0;
	for (long i = 0; i < n; i++)
		if (a[i] == 77)
			printf("at %ld\n", i);
		else
			s += a[i] * (i + 1);
	return s;
}

int main(int argc, char **argv)
{
	long n = argc > 1 ? atol(argv[1]) : 1000;
	long *a = malloc(n * sizeof *a);
	for (long i = 0; i < n; i++)
		a[i] = i * i % 101;
	printf("%ld %u %ld %ld %ld\n", sum(a, n), collatz(97), crossing(n, 0), crossing(n, 1), sometimes(a, n));
	double *m = calloc(3 * 64 * 64, sizeof *m);
	for (int i = 0; i < 64 * 64; i++)
		m[i] = i % 7, m[4096 + i] = i % 5;
	printf("%g\n", matrix(64, m, m + 4096, m + 8192));
	return 0;
}
