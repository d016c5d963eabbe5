// Storage that frames of fixed layout do not hold: arrays of variable length, alloca, large alignment, thread-local.
#include <alloca.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static _Thread_local int counter = 5;
static _Thread_local struct { char c; _Alignas(64) double d; } wide = {'w', 2.5};
static _Thread_local char zeros[300];
_Thread_local int *pointer = &(int){9};
static jmp_buf there;

__attribute__((noinline)) static int fill(char *p, int n)
{
	memset(p, n & 127, n);
	printf("fill %d\n", n);
	return p[n - 1];
}

static int variable(int n)
{
	int sum = 0;
	for (int i = 1; i <= n; i++) {
		char a[i * 10], b[i][3];
		sum += fill(a, sizeof a) + fill(b[0], sizeof b) + a[0];
	}
	return sum;
}

static int deep(int n)
{
	char *p = alloca(n * 1000 + 1);
	int value = fill(p, n * 1000 + 1);
	if (!n)
		longjmp(there, 3);
	return value + deep(n - 1);
}

static void *work(void *argument)
{
	_Alignas(128) char aligned[100];
	for (int i = 0; i < 10; i++) {
		counter += (long)argument;
		zeros[i] += counter;
	}
	long sum = variable(3) + fill(aligned, 100) + !!((uintptr_t)aligned % 128) * 1000;
	return (void *)(counter + zeros[9] + (long)wide.d + *pointer + sum + (long)((uintptr_t)&wide.d % 64));
}

int main(void)
{
	counter++;
	wide.d++;
	printf("%d\n", variable(5));
	for (volatile int i = 0; i < 500; i++) // a side stack that was not put back would be full
		if (!setjmp(there))
			deep(20);
	for (long i = 1; i < 4; i++) {
		pthread_t thread;
		void *result;
		pthread_create(&thread, 0, work, (void *)i);
		pthread_join(thread, &result);
		printf("%ld\n", (long)result);
	}
	long mine = (long)work((void *)2);
	printf("%ld %d %g %d\n", mine, counter, wide.d, zeros[299]);
	return 0;
}
