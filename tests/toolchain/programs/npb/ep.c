// EP, embarrassingly parallel: pairs of Gaussian deviates by the polar method, counted in square annuli, and their sums.
#include "npb.h"

#define EP_SEED 271828183
#define ANNULI 10

static const struct { int log_pairs; double sum_x, sum_y; } classes[] = {
	{24, -3.247834652034740e+3, -6.958407078382297e+3},
	{25, -2.863319731645753e+3, -6.320053679109499e+3},
};

static double sum_x, sum_y;
static long counts[ANNULI];

static void count_pair(double x, double y)
{
	double t = x * x + y * y;
	if (t > 1)
		return;
	double scale = sqrt(-2 * log(t) / t);
	x *= scale;
	y *= scale;
	sum_x += x;
	sum_y += y;
	counts[(int)fmax(fabs(x), fabs(y))]++;
}

int ep(int class)
{
	uint64_t seed = EP_SEED;
	for (long pair = 0; pair < 1L << classes[class].log_pairs; pair++) {
		double x = 2 * random_next(&seed) - 1;
		double y = 2 * random_next(&seed) - 1;
		count_pair(x, y);
	}
	for (int annulus = 0; annulus < ANNULI; annulus++)
		printf("%d %ld\n", annulus, counts[annulus]);
	printf("sums %.15e %.15e\n", sum_x, sum_y);
	return verdict(is_near(sum_x, classes[class].sum_x, 1e-8) && is_near(sum_y, classes[class].sum_y, 1e-8));
}
