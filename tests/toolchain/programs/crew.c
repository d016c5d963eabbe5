// Four threads that take turns, each with a thread-local variable and frames of its own, woken by a condition variable;
// each turn depends on all before: crew TURNS FILE MILLISECONDS-ASLEEP [STOP]
// It ends after that number of turns, or when there is a file called STOP, and writes what came out.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { CREW = 4 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct timespec nap;
static unsigned state = 1, last[CREW];
static int turn, turns, ended;
static const char *stop;
static _Thread_local unsigned own;

static unsigned descend(unsigned depth, unsigned seed)
{
	if (!depth) {
		nanosleep(&nap, 0);
		return seed + own;
	}
	return descend(depth - 1, seed * 1664525 + 1013904223) ^ depth;
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
		last[number] = state = descend(number * 10, state);
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
	turns = atoi(words[1]);
	nap.tv_nsec = atoi(words[3]) * 1000000;
	stop = count > 4 ? words[4] : 0;
	for (long number = 0; number < CREW; number++)
		if (pthread_create(&crew[number], 0, work, (void *)number))
			return 1;
	for (int number = 0; number < CREW; number++)
		pthread_join(crew[number], 0);
	FILE *file = fopen(words[2], "w");
	fprintf(file, "%d", turn);
	for (int number = 0; number < CREW; number++)
		fprintf(file, " %u", last[number]);
	fprintf(file, "\n");
	return fclose(file);
}
