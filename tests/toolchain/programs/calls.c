// Arguments and results of every shape: more than registers hold, variable, by value, large; longjmp over frames; calls
// that do not return.
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct small { int a; double b; };
struct large { long a[5]; };
struct floats { double a, b, c, d; };

static jmp_buf there;

__attribute__((noinline)) static long many(long a, long b, long c, long d, long e, long f, long g, long h, long i,
                                           long j, long k, long l, long m, long n)
{
	printf("many %ld %ld\n", a, n);
	return a + 2 * b + 3 * c + d + e + f + g + h + i + j + k + l + 13 * m + 14 * n;
}

__attribute__((noinline)) static double doubles(double a, double b, double c, double d, double e, double f, double g,
                                                double h, double i, double j)
{
	printf("doubles %g %g\n", a, j);
	return a + b * 2 + c + d + e + f + g + h + i * 9 + j * 10;
}

__attribute__((noinline)) static struct floats floats(double x)
{
	printf("floats\n");
	return (struct floats){x, x * 2, x * 3, x * 4};
}

__attribute__((noinline)) static struct large large(struct large l, struct small s)
{
	printf("large %ld %d %g\n", l.a[4], s.a, s.b);
	l.a[0] += s.a;
	return l;
}

__attribute__((noinline)) static long sum(int n, ...)
{
	va_list list, copy;
	long total = 0;
	va_start(list, n);
	va_copy(copy, list);
	for (int i = 0; i < n; i++)
		total += i % 2 ? (long)va_arg(list, double) : va_arg(list, long);
	total += va_arg(copy, long);
	va_end(copy);
	va_end(list);
	return total;
}

__attribute__((noinline)) static int words(const char *word, ...)
{
	va_list list;
	int n = 0;
	va_start(list, word);
	for (; word; word = va_arg(list, const char *))
		n++;
	va_end(list);
	return n;
}

__attribute__((noinline)) static void fill_stack(void)
{
	volatile char below[1024];
	memset((char *)below, 0xa5, sizeof below);
}

// As many programs do: an int for a pointer.
__attribute__((noinline)) static int end_with_zero(void)
{
	return words("one", "two", "three", 0) + 10 * words("four", 0);
}

__attribute__((noinline)) static void jump(int depth)
{
	volatile char pad[64];
	memset((char *)pad, depth, sizeof pad);
	if (!depth)
		longjmp(there, 7);
	jump(depth - 1);
	printf("never %d\n", pad[0]);
}

// Its end has two ways to it, and nothing behind it.
__attribute__((noinline)) static int child_end(int depth)
{
	int status = 0;
	pid_t child = fork();
	if (!child)
		_exit(dup(-1) >= 0 || getppid() == depth);
	return waitpid(child, &status, 0) == child ? status : -1;
}

int main(void)
{
	long (*pointer)(long, long, long, long, long, long, long, long, long, long, long, long, long, long) = many;
	printf("%ld\n", pointer(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14));
	printf("%g\n", doubles(1, 2, 3, 4, 5, 6, 7, 8, 9, 10));
	struct floats f = floats(1.5);
	printf("%g %g\n", f.a, f.d);
	struct large l = large((struct large){{1, 2, 3, 4, 5}}, (struct small){6, 7.5});
	printf("%ld\n", l.a[0]);
	printf("%ld\n", sum(6, 1L, 2.0, 3L, 4.0, 5L, 6.0));
	fill_stack();
	printf("%d\n", end_with_zero());
	fflush(stdout);
	printf("%d\n", child_end(-1));
	volatile int tries = 0;
	int came = setjmp(there);
	if (came == 0 || tries < 3) {
		tries++;
		printf("try %d %d\n", tries, came);
		jump(tries * 5);
	}
	printf("%Lg %.3f\n", (long double)1 / 3, 2.0 / 3);
	return 0;
}
