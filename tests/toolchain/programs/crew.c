// Four threads that take turns, each with a thread-local variable and frames of its own, woken by a condition variable,
// and a child process that answers by pipes from 10,000 frames deep. Each turn depends on all before:
//     crew TURNS FILE MILLISECONDS-ASLEEP [STOP]
// It ends after that number of turns, or when there is a file called STOP, and writes what came out.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CREW = 4, DEPTH = 10000 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct timespec nap;
static unsigned state = 1, last[CREW];
static double mean;
static int turn, turns, ended, to_child[2], from_child[2];
static const char *stop;
static _Thread_local unsigned own;

static unsigned descend(unsigned depth, unsigned seed)
{
	unsigned kept[4] = {depth, seed, depth ^ seed, depth * seed};
	if (!depth) {
		nanosleep(&nap, 0);
		return seed + own;
	}
	unsigned below = descend(depth - 1, seed * 1664525 + 1013904223);
	return (below * 5 ^ kept[0]) - kept[1] + (kept[2] ^ kept[3]); // no loop can be made of it
}

static void answer(void)
{
	unsigned number;
	close(to_child[1]);
	while (read(to_child[0], &number, sizeof number) == sizeof number) {
		number = descend(DEPTH, number);
		if (write(from_child[1], &number, sizeof number) != sizeof number)
			exit(2);
	}
	exit(0);
}

static unsigned ask(unsigned number)
{
	if (write(to_child[1], &number, sizeof number) != sizeof number ||
	    read(from_child[0], &number, sizeof number) != sizeof number)
		exit(3);
	return number;
}

static void *work(void *argument)
{
	int number = (long)argument;
	own = number;
	pthread_mutex_lock(&lock);
	while (!ended) {
		if (turn % CREW != number) {
			pthread_cond_wait(&changed, &lock);
			continue;
		}
		own = own * 69069 + 1;
		last[number] = state = descend(number * 10, ask(state));
		mean = mean * 0.75 + state / 1000.0;
		turn++;
		ended = turn >= turns || (stop && !access(stop, F_OK));
		pthread_cond_broadcast(&changed);
	}
	pthread_mutex_unlock(&lock);
	return 0;
}

int main(int count, char **words)
{
	pthread_t crew[CREW];
	int status;
	turns = atoi(words[1]);
	nap.tv_nsec = atoi(words[3]) * 1000000;
	stop = count > 4 ? words[4] : 0;
	if (pipe(to_child) || pipe(from_child))
		return 1;
	if (!fork())
		answer();
	for (long number = 0; number < CREW; number++)
		if (pthread_create(&crew[number], 0, work, (void *)number))
			return 1;
	for (int number = 0; number < CREW; number++)
		pthread_join(crew[number], 0);
	close(to_child[1]);
	if (wait(&status) < 0 || status)
		return 4;
	FILE *file = fopen(words[2], "w");
	fprintf(file, "%d %.9g", turn, mean);
	for (int number = 0; number < CREW; number++)
		fprintf(file, " %u", last[number]);
	fprintf(file, "\n");
	return fclose(file);
}
