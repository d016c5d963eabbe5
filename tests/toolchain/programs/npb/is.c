// IS, integer sort: ten times the ranks of all keys, two of which change each time; five are known. Sorted at the end.
#include "npb.h"

#define ROUNDS 10
#define KNOWN 5

static const struct {
	int log_keys, log_limit;
	int index[KNOWN]; // keys whose ranks are known, and how these move with the rounds
	int rank[KNOWN];
	int rising; // so many of them rise by one a round (the rest falls)
	int rise_from; // what is added in round r is r - rise_from
} classes[] = {
	{16, 11, {48427, 17148, 23627, 62548, 4431}, {0, 18, 346, 64917, 65463}, 3, 0},
	{20, 16, {357773, 934767, 875723, 898999, 404505}, {1249, 11698, 1039987, 1043896, 1048018}, 2, 2},
};

static int *keys, *less; // less[k]: how many keys are less than k
static long key_count;
static int limit;

static void create_keys(void)
{
	uint64_t seed = RANDOM_SEED;
	for (long i = 0; i < key_count; i++) {
		double sum = random_next(&seed);
		for (int more = 0; more < 3; more++)
			sum += random_next(&seed);
		keys[i] = (int)(limit / 4 * sum);
	}
}

static void rank_keys(void)
{
	for (int k = 0; k <= limit; k++)
		less[k] = 0;
	for (long i = 0; i < key_count; i++)
		less[keys[i] + 1]++;
	for (int k = 0; k < limit; k++)
		less[k + 1] += less[k];
}

static int right_ranks(int class, int round)
{
	int right = 0;
	for (int i = 0; i < KNOWN; i++) {
		int moved = i < classes[class].rising ? round - classes[class].rise_from : -round;
		right += less[keys[classes[class].index[i]]] == classes[class].rank[i] + moved;
	}
	return right;
}

// Keys go where their ranks say, each behind those of its kind that went before; then each must be no less than the last.
static int is_sorted(void)
{
	int *sorted = room_for(key_count, sizeof *sorted);
	int right = 1;
	for (long i = 0; i < key_count; i++)
		sorted[less[keys[i]]++] = keys[i];
	for (long i = 1; i < key_count; i++)
		right &= sorted[i - 1] <= sorted[i];
	free(sorted);
	return right;
}

int is(int class)
{
	int right = 0;
	key_count = 1L << classes[class].log_keys;
	limit = 1 << classes[class].log_limit;
	keys = room_for(key_count, sizeof *keys);
	less = room_for(limit + 1, sizeof *less);
	create_keys();
	for (int round = 1; round <= ROUNDS; round++) {
		keys[round] = round;
		keys[round + ROUNDS] = limit - round;
		rank_keys();
		right += right_ranks(class, round);
	}
	int sorted = is_sorted();
	printf("ranks %d of %d, %s\n", right, ROUNDS * KNOWN, sorted ? "sorted" : "not sorted");
	return verdict(right == ROUNDS * KNOWN && sorted);
}
