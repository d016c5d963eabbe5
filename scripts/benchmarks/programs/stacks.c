// Threads that are deep in frames, and memory that is full: what a change of ISA has to deal with.
//     stacks THREADS FRAMES BYTES
// It says "ready" and sleeps. No two pages of the memory are equal.
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static atomic_int deep;

static unsigned descend(unsigned depth, unsigned seed)
{
	unsigned kept[4] = {depth, seed, depth ^ seed, depth * seed};
	if (!depth) {
		deep++;
		for (;;)
			pause();
	}
	unsigned below = descend(depth - 1, seed * 1664525 + 1013904223);
	return (below * 5 ^ kept[0]) - kept[1] + (kept[2] ^ kept[3]); // no loop can be made of it
}

static void *work(void *frames)
{
	descend((long)frames, 1);
	return 0;
}

static int fill(long bytes)
{
	unsigned long *words = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (words == MAP_FAILED)
		return 0;
	for (long number = 0; number < bytes / 8; number++)
		words[number] = number * 0x9e3779b97f4a7c15;
	return 1;
}

int main(int count, char **words)
{
	if (count < 4 || !fill(atol(words[3])))
		return 2;
	int threads = atoi(words[1]);
	pthread_attr_t attributes;
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 8 << 20);
	for (int number = 1; number < threads; number++) {
		pthread_t thread;
		if (pthread_create(&thread, &attributes, work, (void *)atol(words[2])))
			return 3;
	}
	while (deep < threads - 1)
		usleep(1000);
	puts("ready");
	fflush(stdout);
	work((void *)atol(words[2]));
}
