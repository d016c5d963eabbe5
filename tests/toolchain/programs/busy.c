// Threads that do what a thread can be found at: deep recursion, a mutex, a loop around a leaf that takes long, sleep, a
// pipe. Its output tells whether each did all of it. Argument: how much.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long counter, rounds;
static volatile long size = 24; // volatile: for the compiler to know nothing
static int ends[2];

static long fib(long n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }

static void *compute(void *argument)
{
	long sum = 0;
	for (long i = 0; i < rounds; i++) {
		sum += fib(size + (long)argument);
		pthread_mutex_lock(&lock);
		counter++;
		pthread_mutex_unlock(&lock);
	}
	return (void *)sum;
}

static void *copy(void *unused)
{
	size_t bytes = 4 << 20;
	char *volatile from = malloc(bytes), *volatile to = malloc(bytes);
	long sum = 0;
	for (long i = 0; i < rounds; i++) {
		memset(from, i, bytes);
		memcpy(to, from, bytes);
		sum += to[bytes - 1] + to[bytes / 2];
	}
	free(from);
	free(to);
	return (void *)sum;
}

static void *doze(void *unused)
{
	struct timespec pause = {0, 2000000};
	for (long i = 0; i < rounds; i++) {
		nanosleep(&pause, 0);
		if (write(ends[1], &i, sizeof i) != sizeof i)
			return (void *)-1;
	}
	close(ends[1]);
	return (void *)rounds;
}

static void *listen(void *unused)
{
	long got, sum = 0;
	while (read(ends[0], &got, sizeof got) == sizeof got)
		sum += got;
	return (void *)sum;
}

void never(void)
{
	printf("never\n");
}

void (*volatile anything)(void);

int main(int count, char **words)
{
	void *(*const work[])(void *) = {compute, compute, copy, doze, listen};
	pthread_t threads[5];
	rounds = count > 1 ? atol(words[1]) : 100;
	if (count > 2)
		anything = never;
	if (pipe(ends))
		return 1;
	for (long i = 0; i < 5; i++)
		if (pthread_create(&threads[i], 0, work[i], (void *)i))
			return 1;
	for (int i = 0; i < 5; i++) {
		void *result;
		pthread_join(threads[i], &result);
		printf("%ld\n", (long)result);
	}
	if (anything)
		anything();
	printf("%ld\n", counter);
	return 0;
}
