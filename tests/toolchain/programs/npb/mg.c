// MG, multigrid: V-cycles for a Poisson equation on a periodic cube, with charges of 1 and -1 at ten places each.
#include "npb.h"

#define LEVELS 7 // at most
#define CYCLES 4
#define CHARGES 10

static const struct { int levels; double norm; } classes[] = {
	{5, 0.5307707005734e-04},
	{7, 0.6467329375339e-05},
};

// Weights of 27 points around a place: itself, 6 faces, 12 edges, 8 corners.
static const double laplace[4] = {-8.0 / 3, 0, 1.0 / 6, 1.0 / 12};
static const double smooth[4] = {-3.0 / 8, 1.0 / 32, -1.0 / 64, 0};
static const double restriction[4] = {1.0 / 2, 1.0 / 4, 1.0 / 8, 1.0 / 16};

// A cube of `size` places a side, in 1..size, and around it a copy of the opposite faces, as the cube repeats itself.
struct grid {
	int size;
	double *at;
};

static inline double *row(const struct grid *grid, int z, int y)
{
	long side = grid->size + 2;
	return grid->at + (z * side + y) * side;
}

static struct grid create_grid(int size)
{
	size_t side = size + 2;
	return (struct grid){size, room_for(side * side * side, sizeof(double))};
}

static void clear(struct grid *grid)
{
	long side = grid->size + 2;
	for (long i = 0; i < side * side * side; i++)
		grid->at[i] = 0;
}

static void copy_faces(struct grid *grid)
{
	int n = grid->size, side = n + 2;
	for (int z = 1; z <= n; z++) {
		for (int y = 1; y <= n; y++) {
			double *x = row(grid, z, y);
			x[0] = x[n];
			x[n + 1] = x[1];
		}
		for (int x = 0; x < side; x++) {
			row(grid, z, 0)[x] = row(grid, z, n)[x];
			row(grid, z, n + 1)[x] = row(grid, z, 1)[x];
		}
	}
	for (int y = 0; y < side; y++)
		for (int x = 0; x < side; x++) {
			row(grid, 0, y)[x] = row(grid, n, y)[x];
			row(grid, n + 1, y)[x] = row(grid, 1, y)[x];
		}
}

// The 9 rows around one: it, its 4 neighbours, and their 4.
struct around {
	const double *middle, *side[4], *corner[4];
};

static struct around around(const struct grid *grid, int z, int y)
{
	return (struct around){
		row(grid, z, y),
		{row(grid, z - 1, y), row(grid, z + 1, y), row(grid, z, y - 1), row(grid, z, y + 1)},
		{row(grid, z - 1, y - 1), row(grid, z - 1, y + 1), row(grid, z + 1, y - 1), row(grid, z + 1, y + 1)},
	};
}

static inline double four(const double *const rows[4], int x)
{
	return rows[0][x] + rows[1][x] + rows[2][x] + rows[3][x];
}

static inline double weighted(const struct around *at, int x, const double weights[4])
{
	double faces = at->middle[x - 1] + at->middle[x + 1] + four(at->side, x);
	double edges = four(at->side, x - 1) + four(at->side, x + 1) + four(at->corner, x);
	double corners = four(at->corner, x - 1) + four(at->corner, x + 1);
	return weights[0] * at->middle[x] + weights[1] * faces + weights[2] * edges + weights[3] * corners;
}

// r = v - A u. r may be v.
static void residual(struct grid *r, const struct grid *v, const struct grid *u)
{
	for (int z = 1; z <= r->size; z++)
		for (int y = 1; y <= r->size; y++) {
			struct around at = around(u, z, y);
			for (int x = 1; x <= r->size; x++)
				row(r, z, y)[x] = row(v, z, y)[x] - weighted(&at, x, laplace);
		}
	copy_faces(r);
}

// u = u + S r
static void smoothen(struct grid *u, const struct grid *r)
{
	for (int z = 1; z <= u->size; z++)
		for (int y = 1; y <= u->size; y++) {
			struct around at = around(r, z, y);
			for (int x = 1; x <= u->size; x++)
				row(u, z, y)[x] += weighted(&at, x, smooth);
		}
	copy_faces(u);
}

static void restrict_to(struct grid *coarse, const struct grid *fine)
{
	for (int z = 1; z <= coarse->size; z++)
		for (int y = 1; y <= coarse->size; y++) {
			struct around at = around(fine, 2 * z, 2 * y);
			for (int x = 1; x <= coarse->size; x++)
				row(coarse, z, y)[x] = weighted(&at, 2 * x, restriction);
		}
	copy_faces(coarse);
}

// Adds the coarse grid to the fine one: places in between get the mean of the 2, 4 or 8 around.
static void interpolate(struct grid *fine, const struct grid *coarse)
{
	for (int z = 0; z < fine->size + 2; z++)
		for (int y = 0; y < fine->size + 2; y++) {
			double *to = row(fine, z, y);
			const double *from[4] = {
				row(coarse, z / 2, y / 2), row(coarse, (z + 1) / 2, y / 2),
				row(coarse, z / 2, (y + 1) / 2), row(coarse, (z + 1) / 2, (y + 1) / 2),
			};
			for (int x = 0; x < fine->size + 2; x++)
				to[x] += (four(from, x / 2) + four(from, (x + 1) / 2)) / 8;
		}
}

static void cycle(struct grid *u, const struct grid *v, struct grid *r, int top)
{
	for (int level = top; level > 0; level--)
		restrict_to(&r[level - 1], &r[level]);
	clear(&u[0]);
	smoothen(&u[0], &r[0]);
	for (int level = 1; level <= top; level++) {
		if (level < top)
			clear(&u[level]);
		interpolate(&u[level], &u[level - 1]);
		residual(&r[level], level < top ? &r[level] : v, &u[level]);
		smoothen(&u[level], &r[level]);
	}
}

static double norm(const struct grid *grid)
{
	double sum = 0, size = grid->size;
	for (int z = 1; z <= grid->size; z++)
		for (int y = 1; y <= grid->size; y++)
			for (int x = 1; x <= grid->size; x++)
				sum += row(grid, z, y)[x] * row(grid, z, y)[x];
	return sqrt(sum / (size * size * size));
}

// A place goes into a list of the CHARGES whose values are greatest (by `sign`), greatest first.
static void keep(double *values, double **places, double value, double *place, int sign)
{
	int i = CHARGES;
	for (; i > 0 && sign * value > sign * values[i - 1]; i--)
		if (i < CHARGES) {
			values[i] = values[i - 1];
			places[i] = places[i - 1];
		}
	if (i < CHARGES) {
		values[i] = value;
		places[i] = place;
	}
}

// 1 where random numbers are greatest, -1 where they are least.
static void create_charges(struct grid *v)
{
	double most[CHARGES] = {0}, least[CHARGES], *most_at[CHARGES] = {0}, *least_at[CHARGES] = {0};
	uint64_t seed = RANDOM_SEED;
	for (int i = 0; i < CHARGES; i++)
		least[i] = 1;
	for (int z = 1; z <= v->size; z++)
		for (int y = 1; y <= v->size; y++)
			for (int x = 1; x <= v->size; x++) {
				double value = random_next(&seed);
				keep(most, most_at, value, row(v, z, y) + x, 1);
				keep(least, least_at, value, row(v, z, y) + x, -1);
			}
	for (int i = 0; i < CHARGES; i++) {
		*most_at[i] = 1;
		*least_at[i] = -1;
	}
	copy_faces(v);
}

int mg(int class)
{
	int top = classes[class].levels - 1;
	struct grid u[LEVELS], r[LEVELS];
	for (int level = 0; level <= top; level++) {
		u[level] = create_grid(2 << level);
		r[level] = create_grid(2 << level);
	}
	struct grid v = create_grid(2 << top);
	create_charges(&v);
	residual(&r[top], &v, &u[top]);
	for (int i = 0; i < CYCLES; i++) {
		cycle(u, &v, r, top);
		residual(&r[top], &v, &u[top]);
	}
	printf("norm %.13e\n", norm(&r[top]));
	return verdict(is_near(norm(&r[top]), classes[class].norm, 1e-8));
}
