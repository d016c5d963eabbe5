// Steps, each some frames deep and asleep at the bottom; each result depends on all before. What it has to say it keeps
// in memory, and writes to a file in the end: steps NUMBER FILE MILLISECONDS-ASLEEP DEPTH [STOP]
// It ends after that number of steps, or when there is a file called STOP.
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static struct timespec nap;

static unsigned descend(unsigned depth, unsigned seed)
{
	unsigned kept[4] = {depth, seed, depth ^ seed, depth * seed};
	if (!depth) {
		nanosleep(&nap, 0);
		return seed;
	}
	unsigned below = descend(depth - 1, seed * 1664525 + 1013904223);
	return below + kept[0] - kept[1] + kept[2] - kept[3];
}

int main(int count, char **words)
{
	unsigned state = 4;
	double sum = 0.5;
	nap.tv_nsec = atoi(words[3]) * 1000000;
	char *said;
	size_t size;
	FILE *memory = open_memstream(&said, &size);
	for (int step = 0; step < atoi(words[1]) && !(count > 5 && !access(words[5], F_OK)); step++) {
		state = state * 69069 + descend(atoi(words[4]), state);
		sum = sum * 0.75 + state / 1000.0;
		fprintf(memory, "%d %u %.9g\n", step, state, sum);
	}
	fclose(memory);
	FILE *file = fopen(words[2], "w");
	fwrite(said, 1, size, file);
	return fclose(file);
}
