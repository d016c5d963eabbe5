// Threads that share a counter under a mutex, wait on a condition variable, and have stacks of their own.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static long counter;
static int started;

static long fib(long n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }

static void *work(void *argument)
{
	long *result = malloc(sizeof *result);
	pthread_mutex_lock(&lock);
	started++;
	pthread_cond_broadcast(&changed);
	while (started < 4)
		pthread_cond_wait(&changed, &lock);
	pthread_mutex_unlock(&lock);
	*result = fib((long)argument);
	for (int i = 0; i < 1000; i++) {
		pthread_mutex_lock(&lock);
		counter++;
		pthread_mutex_unlock(&lock);
	}
	return result;
}

int main(void)
{
	pthread_t threads[4];
	for (long i = 0; i < 4; i++)
		if (pthread_create(&threads[i], 0, work, (void *)(15 + i)))
			return 1;
	for (int i = 0; i < 4; i++) {
		void *result;
		pthread_join(threads[i], &result);
		printf("%ld\n", *(long *)result);
		free(result);
	}
	printf("%ld\n", counter);
	return 0;
}
