// A signal handler that takes as many milliseconds as the argument says, over a computation. Its output says how often it
// ran. It ends when its input does.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static volatile long handled, length;

static long fib(long n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }

static void handle(int unused)
{
	struct timespec pause = {length / 1000, length % 1000 * 1000000};
	while (nanosleep(&pause, &pause))
		;
	handled += fib(15) == 610;
}

int main(int count, char **words)
{
	length = atol(words[1]);
	signal(SIGUSR1, handle);
	printf("ready\n");
	fflush(stdout);
	while (!handled)
		if (fib(20) != 6765)
			return 1;
	length = getchar();
	printf("%ld %ld\n", handled, length);
	return 0;
}
