// What the kernels share. They are written from the algorithms and verification values of the NAS Parallel Benchmarks
// (report RNR-94-007, and the later classes S and W), to be small and to be compared, not to be submitted anywhere:
// `npb KERNEL CLASS` runs one, prints what it verifies with all its digits, and exits with 0 only if it is right.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define RANDOM_SEED 314159265
#define RANDOM_FACTOR 1220703125 // 5^13
#define RANDOM_MASK ((UINT64_C(1) << 46) - 1)

// The next number in (0, 1) of x' = 5^13 x mod 2^46. 2^46 divides 2^64, so the product may overflow.
static inline double random_next(uint64_t *x)
{
	*x = *x * RANDOM_FACTOR & RANDOM_MASK;
	return (double)*x * 0x1p-46;
}

static inline void *room_for(size_t count, size_t size)
{
	void *room = calloc(count, size);
	if (!room) {
		perror("calloc");
		exit(2);
	}
	return room;
}

static inline int is_near(double value, double wanted, double tolerance)
{
	return fabs((value - wanted) / wanted) <= tolerance;
}

static inline int verdict(int right)
{
	puts(right ? "SUCCESSFUL" : "UNSUCCESSFUL");
	return right ? 0 : 1;
}

// The kernels. `class`: index in CLASSES; result: the exit code.
#define CLASSES "SW"
int ep(int class);
int is(int class);
int cg(int class);
int mg(int class);
int ft(int class);
