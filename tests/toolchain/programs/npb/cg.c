// CG, conjugate gradient: the smallest eigenvalue of a large sparse symmetric matrix by inverse power iteration.
#include "npb.h"

#define STEPS 25 // of conjugate gradient, for each step of the power iteration
#define ROUNDS 15
#define CONDITION 0.1
#define MOST_NONZEROS 9

static const struct { int order, nonzeros; double shift, zeta; } classes[] = {
	{1400, 7, 10, 8.5971775078648},
	{7000, 8, 12, 10.362595087124},
};

// The matrix by rows: columns and values of row i are from start[i] to start[i + 1].
static int order, *start, *column;
static double *value;

// A random sparse vector.
struct vector {
	int count, at[MOST_NONZEROS];
	double value[MOST_NONZEROS];
};

static int find(const struct vector *vector, int at)
{
	for (int k = 0; k < vector->count; k++)
		if (vector->at[k] == at)
			return k;
	return -1;
}

static void create_vector(struct vector *vector, int nonzeros, int own, uint64_t *seed)
{
	int power = 1;
	while (power < order)
		power *= 2;
	while (vector->count < nonzeros) {
		double element = random_next(seed);
		int at = (int)(power * random_next(seed));
		if (at >= order || find(vector, at) >= 0)
			continue;
		vector->value[vector->count] = element;
		vector->at[vector->count++] = at;
	}
	int k = find(vector, own);
	if (k < 0)
		vector->at[k = vector->count++] = own;
	vector->value[k] = 0.5;
}

// Adds weight * (its element `row`) * vector to the dense `sums`, and notes columns that are new in this row.
static int add_to_row(const struct vector *vector, int row, double weight, double *sums, char *seen, int *columns, int count)
{
	double factor = weight * vector->value[find(vector, row)];
	for (int k = 0; k < vector->count; k++) {
		int at = vector->at[k];
		if (!seen[at])
			columns[count++] = at;
		seen[at] = 1;
		sums[at] += factor * vector->value[k];
	}
	return count;
}

// The sum of the weighted outer products of all vectors with themselves, and `diagonal` on the diagonal. Row by row: in
// row i are the vectors that have an element i, found by a list for each row.
static void assemble(const struct vector *vectors, double diagonal)
{
	int *first = room_for(order, sizeof *first), *next = room_for((size_t)order * MOST_NONZEROS, sizeof *next);
	double *sums = room_for(order, sizeof *sums), ratio = pow(CONDITION, 1.0 / order);
	double *weight = room_for(order, sizeof *weight);
	char *seen = room_for(order, 1);
	size_t most = 0;
	for (int i = 0; i < order; i++)
		first[i] = -1;
	for (int i = order - 1; i >= 0; i--)
		for (int k = 0; k < vectors[i].count; k++) {
			int link = i * MOST_NONZEROS + k, row = vectors[i].at[k];
			next[link] = first[row];
			first[row] = link;
			most += vectors[i].count;
		}
	weight[0] = 1;
	for (int i = 1; i < order; i++)
		weight[i] = weight[i - 1] * ratio;
	start = room_for(order + 1, sizeof *start);
	column = room_for(most, sizeof *column);
	value = room_for(most, sizeof *value);
	for (int row = 0; row < order; row++) {
		int *columns = column + start[row], count = 0;
		for (int link = first[row]; link >= 0; link = next[link]) {
			int i = link / MOST_NONZEROS;
			count = add_to_row(&vectors[i], row, weight[i], sums, seen, columns, count);
		}
		sums[row] += diagonal;
		for (int k = 0; k < count; k++) {
			value[start[row] + k] = sums[columns[k]];
			sums[columns[k]] = seen[columns[k]] = 0;
		}
		start[row + 1] = start[row] + count;
	}
	free(first);
	free(next);
	free(sums);
	free(weight);
	free(seen);
}

static void create_matrix(int nonzeros, double shift)
{
	struct vector *vectors = room_for(order, sizeof *vectors);
	uint64_t seed = RANDOM_SEED;
	random_next(&seed);
	for (int i = 0; i < order; i++)
		create_vector(&vectors[i], nonzeros, i, &seed);
	assemble(vectors, CONDITION - shift);
	free(vectors);
}

static void multiply(const double *x, double *product)
{
	for (int i = 0; i < order; i++) {
		double sum = 0;
		for (int k = start[i]; k < start[i + 1]; k++)
			sum += value[k] * x[column[k]];
		product[i] = sum;
	}
}

static double dot(const double *x, const double *y)
{
	double sum = 0;
	for (int i = 0; i < order; i++)
		sum += x[i] * y[i];
	return sum;
}

// Solves A z = x, nearly.
static void solve(const double *x, double *z, double *r, double *p, double *q)
{
	for (int i = 0; i < order; i++) {
		z[i] = 0;
		r[i] = p[i] = x[i];
	}
	double rho = dot(r, r);
	for (int step = 0; step < STEPS; step++) {
		multiply(p, q);
		double alpha = rho / dot(p, q);
		for (int i = 0; i < order; i++) {
			z[i] += alpha * p[i];
			r[i] -= alpha * q[i];
		}
		double before = rho;
		rho = dot(r, r);
		for (int i = 0; i < order; i++)
			p[i] = r[i] + rho / before * p[i];
	}
}

int cg(int class)
{
	double zeta = 0, *vectors[5];
	order = classes[class].order;
	create_matrix(classes[class].nonzeros, classes[class].shift);
	for (int i = 0; i < 5; i++)
		vectors[i] = room_for(order, sizeof **vectors);
	double *x = vectors[0], *z = vectors[1];
	for (int i = 0; i < order; i++)
		x[i] = 1;
	for (int round = 0; round < ROUNDS; round++) {
		solve(x, z, vectors[2], vectors[3], vectors[4]);
		zeta = classes[class].shift + 1 / dot(x, z);
		double scale = 1 / sqrt(dot(z, z));
		for (int i = 0; i < order; i++)
			x[i] = scale * z[i];
	}
	printf("zeta %.13f\n", zeta);
	return verdict(is_near(zeta, classes[class].zeta, 1e-10));
}
