// More narrow arguments than there are registers for them, among wide ones; and a call whose result nobody wants.
#include <stdio.h>

__attribute__((noinline)) static int version(void) { return 3; }

int (*volatile unwanted)(void) = version;

__attribute__((noinline)) static long wide(void *a, void *b, void *c, void *d, void *e, int f, void *g, void *h, int i, int j, char k)
{
	return (a == b) + (c == d) + (e == g) + (g == h) + 10 * f + 100 * i + 1000 * j + 10000 * k;
}

__attribute__((noinline)) static long narrow(int a, short b, char c, int d, unsigned char e, int f, int g, _Bool h, int i, int j)
{
	printf("%d %d %d %d %d %d %d %d %d %d\n", a, b, c, d, e, f, g, h, i, j);
	return a - b + c - d + e - f + g - h + i - j;
}

int main(void)
{
	long (*volatile by_pointer)(int, short, char, int, unsigned char, int, int, _Bool, int, int) = narrow;
	int x;
	version();
	unwanted();
	printf("%ld\n", wide(&x, &x, 0, 0, &x, 1, &x, 0, -2, 3, (char)-4));
	printf("%ld\n", by_pointer(-1, -2, -3, 4, 255, 6, -7, 1, 9, -10));
	return 0;
}
