// Stays at the bottom of 10,000 frames, where it changes little, and comes back through all of them at the end:
//     deep TURNS FILE MILLISECONDS-ASLEEP [STOP]
// That is after that number of turns, or when there is a file called STOP; what it writes depends on every frame.
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { DEPTH = 10000 };

static struct timespec nap;
static unsigned turn, turns;
static const char *stop;

static unsigned stay(unsigned number)
{
	while (turn < turns && !(stop && !access(stop, F_OK))) {
		number = number * 1664525 + 1013904223;
		turn++;
		nanosleep(&nap, 0);
	}
	return number;
}

static unsigned descend(unsigned depth, unsigned seed)
{
	unsigned kept[4] = {depth, seed, depth ^ seed, depth * seed};
	if (!depth)
		return stay(seed);
	unsigned below = descend(depth - 1, seed * 1664525 + 1013904223);
	return (below * 5 ^ kept[0]) - kept[1] + (kept[2] ^ kept[3]); // no loop can be made of it
}

int main(int argc, char **argv)
{
	if (argc < 4)
		return 2;
	turns = strtoul(argv[1], 0, 10);
	nap.tv_nsec = atol(argv[3]) * 1000000;
	stop = argv[4];
	unsigned number = descend(DEPTH, 1);
	FILE *file = fopen(argv[2], "w");
	if (!file)
		return 3;
	fprintf(file, "%u %u\n", turn, number);
	return fclose(file) ? 4 : 0;
}
