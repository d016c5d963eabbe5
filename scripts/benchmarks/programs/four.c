// Four threads that do what threads do, until they are killed: deep recursion, a loop without calls, a leaf that takes long
// (memcpy of 4 MiB), and naps of 2 ms with a mutex and a pipe between them.
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static volatile long size = 24, sum; // volatile: for the compiler to know nothing
static int ends[2];

static long fib(long n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }

static void *recurse(void *unused)
{
	for (;;) {
		long found = fib(size);
		pthread_mutex_lock(&lock);
		sum += found;
		pthread_mutex_unlock(&lock);
	}
}

static void *loop(void *unused)
{
	unsigned long x = size;
	for (;;) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		if (!x)
			sum = 1;
	}
}

static void *copy(void *unused)
{
	size_t bytes = 4 << 20;
	char *volatile from = malloc(bytes), *volatile to = malloc(bytes);
	for (;;)
		memcpy(to, from, bytes);
}

int main(void)
{
	void *(*const work[])(void *) = {recurse, loop, copy};
	pthread_t thread;
	struct timespec nap = {0, 2000000};
	char c = 0;
	if (pipe(ends))
		return 1;
	for (int i = 0; i < 3; i++)
		if (pthread_create(&thread, 0, work[i], 0))
			return 1;
	for (;;) {
		nanosleep(&nap, 0);
		pthread_mutex_lock(&lock);
		if (write(ends[1], &c, 1) != 1 || read(ends[0], &c, 1) != 1)
			return 1;
		pthread_mutex_unlock(&lock);
	}
}
