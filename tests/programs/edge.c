/* A process whose memory shows at any moment exactly one edge: it adds one to a byte of each page, page after page, over and over.
 * So the pages before the edge hold a value, those behind it the value before. A page that is older or newer than the rest, from
 * another place or lost, is a second edge or another page's name. What dumps of changes get wrong is seen this way, whenever it is.
 *
 *   edge --size BYTES --report FILE [--threads N] [--procs N] [--shared BYTES] [--still BYTES] [--churn] [--forks]
 *        [--batch PAGES] [--pause MICROSECONDS]
 *
 * Each thread has a region of --size bytes with an edge of its own. --procs makes children by fork: they inherit the regions, and
 * each goes on in its own copy. --shared is memory that all of them share, each with a part and an edge of its own, and a beat that
 * the root counts and all see. --still is memory that is written once, by the root. --churn maps, unmaps, grows, shrinks, moves,
 * empties and closes (PROT_NONE) small regions between steps, mostly at addresses where others have been. --forks ends a child and
 * makes another one in its place, now and then. --batch is the number of pages in a step, --pause the time between two.
 *
 * The report has one line of REPORT_LINE bytes for each process, overwritten in place. All memory of a process is verified with each
 * lap of its first edge and on demand: SIGUSR1 to the root, which tells its children; `demanded` rises when done. `wrong` counts
 * pages ever found wrong, `at` is the address of the first, `edges` the most edges ever found in one region. SIGTERM: verify
 * once more, report "bye", exit 0. What is found wrong ends nothing.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
	PAGE = 4096,
	WORDS = PAGE / 8,
	COUNTER = PAGE / 2, /* where a page has its counter; its name is in its first and its last word */
	REPORT_LINE = 256,
	MAX_THREADS = 16,
	MAX_PROCS = 16,
	PLACES = 16,	   /* for regions of --churn, side by side */
	PLACE_PAGES = 32,
	FORK_EVERY = 50, /* steps */
};

#define ARENA ((uint8_t *)0x100000000000) /* of the regions of --churn: nothing else is ever mapped there */

/* Pages [first, filled) have a name and a counter, [filled, pages) were never written. What is before `first` is unmapped. */
struct region {
	uint8_t *base; /* NULL: unmapped */
	uint64_t key;  /* of its contents: nothing else has had the same */
	uint32_t first, filled, pages;
	uint32_t cursor; /* of the edge: pages before it have counted one more than `value` */
	uint8_t value;
	uint8_t closed;
};

struct worker {
	pthread_t thread;
	struct region region;
	uint64_t laps, wrong, at;
	uint32_t edges;
	_Atomic uint64_t demanded;
};

struct shared {
	_Atomic uint64_t beat;
	struct region parts[MAX_PROCS];
};

static struct {
	uint64_t size, shared, still;
	const char *report;
	int threads, procs, churn, forks, batch, pause;
} options = { .threads = 1, .procs = 1, .batch = 17, .pause = 1000 }; /* 17: the edge is not at the end when a lap is */

static struct worker workers[MAX_THREADS];
static struct region places[PLACES], still;
static struct shared *shared;
static pid_t children[MAX_PROCS];
static pthread_rwlock_t stepping = PTHREAD_RWLOCK_INITIALIZER; /* held to write by a fork: no edge is half-way then */
static int slot, report_fd;
static uint64_t steps, generation, changes, forks, drawn;
static volatile sig_atomic_t demands, stopping;

static void report(const char *state);

static void fail(const char *what)
{
	char state[64];

	snprintf(state, sizeof(state), "ERROR=%s:%s", what, strerrorname_np(errno));
	report(state);
	_exit(3);
}

/* splitmix64 (Steele, Lea, Flood 2014). */
static uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
	return x ^ (x >> 31);
}

static uint32_t draw(uint32_t below)
{
	return mix(++drawn * 0x9e3779b97f4a7c15 + slot) % below;
}

static void report(const char *state)
{
	uint64_t demanded = UINT64_MAX, wrong = 0, at = 0;
	uint32_t edges = 0;
	char line[REPORT_LINE];
	int length;

	for (int i = 0; i < options.threads; i++) {
		demanded = workers[i].demanded < demanded ? workers[i].demanded : demanded;
		wrong += workers[i].wrong;
		at = at ? at : workers[i].at;
		edges = workers[i].edges > edges ? workers[i].edges : edges;
	}
	length = snprintf(line, sizeof(line),
			  "%s pid=%d steps=%lu laps=%lu demanded=%lu edges=%u wrong=%lu at=%lx base=%lx changes=%lu generation=%lu forks=%lu beat=%lu end=%lu",
			  state, getpid(), steps, workers[0].laps, demanded, edges, wrong, at, (uint64_t)workers[0].region.base,
			  changes, generation, forks, shared ? shared->beat : 0, steps);
	memset(line + length, ' ', REPORT_LINE - length);
	line[REPORT_LINE - 1] = '\n';
	if (pwrite(report_fd, line, REPORT_LINE, (off_t)slot * REPORT_LINE) != REPORT_LINE)
		_exit(3);
}

static uint8_t *page(const struct region *region, uint32_t number)
{
	return region->base + (uint64_t)number * PAGE;
}

static void fill(struct region *region, uint32_t to)
{
	for (; region->filled < to; region->filled++) {
		uint64_t *words = (uint64_t *)page(region, region->filled);

		words[0] = mix(region->key + region->filled);
		words[WORDS - 1] = ~words[0];
		page(region, region->filled)[COUNTER] = region->value;
	}
}

static void map_at(uint8_t *at, uint32_t pages, int kind)
{
	if (mmap(at, (uint64_t)pages * PAGE, PROT_READ | PROT_WRITE, kind | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != at)
		fail("mmap");
}

static void begin(struct region *region, uint8_t *at, uint32_t pages, uint32_t filled)
{
	generation++;
	*region = (struct region){ .base = at, .key = mix(((uint64_t)slot << 56) + (forks << 32) + generation), .pages = pages };
	region->value = region->key;
	fill(region, filled);
}

static void unmap(struct region *region, uint32_t from, uint32_t to)
{
	if (munmap(page(region, from), (uint64_t)(to - from) * PAGE))
		fail("munmap");
}

static void protect(struct region *region, int protection)
{
	if (mprotect(page(region, region->first), (uint64_t)(region->pages - region->first) * PAGE, protection))
		fail("mprotect");
}

/* True at the end of a lap. */
static int advance(struct region *region)
{
	if (region->first == region->filled)
		return 0;
	page(region, region->cursor)[COUNTER]++;
	if (++region->cursor < region->filled)
		return 0;
	region->cursor = region->first;
	region->value++;
	return 1;
}

static int is_right(const struct region *region, uint32_t number)
{
	const uint64_t *words = (const uint64_t *)page(region, number);
	uint8_t wanted = region->value + (number < region->cursor);

	if (number >= region->filled)
		return !words[0] && !words[COUNTER / 8] && !words[WORDS - 1];
	return words[0] == mix(region->key + number) && words[WORDS - 1] == ~words[0] && words[COUNTER / 8] == wanted;
}

static void verify(struct worker *worker, struct region *region)
{
	uint32_t edges = 0;

	if (!region->base)
		return;
	if (region->closed)
		protect(region, PROT_READ);
	for (uint32_t number = region->first; number < region->pages; number++) {
		edges += number > region->first && number < region->filled && page(region, number)[COUNTER] != page(region, number - 1)[COUNTER];
		if (!is_right(region, number)) {
			worker->wrong++;
			worker->at = worker->at ? worker->at : (uint64_t)page(region, number);
		}
	}
	if (region->closed)
		protect(region, PROT_NONE);
	worker->edges = edges > worker->edges ? edges : worker->edges;
}

static void verify_all(struct worker *worker)
{
	verify(worker, &worker->region);
	for (int i = 0; worker == workers && i < PLACES; i++)
		verify(worker, &places[i]);
	if (worker == workers)
		verify(worker, &still);
	if (worker == workers && shared)
		verify(worker, &shared->parts[slot]);
}

static struct region *free_place(void)
{
	for (int tries = 0; tries < PLACES; tries++) {
		struct region *region = &places[draw(PLACES)];

		if (!region->base)
			return region;
	}
	return NULL;
}

static uint8_t *address(const struct region *region)
{
	return ARENA + (region - places) * (uint64_t)PLACE_PAGES * PAGE;
}

static void map_new(struct region *region)
{
	uint32_t pages = 1 + draw(PLACE_PAGES);

	map_at(address(region), pages, MAP_PRIVATE);
	begin(region, address(region), pages, draw(pages + 1));
}

/* By mremap, or by a mapping beside it, which the kernel makes one with it; mremap refuses what is of several mappings. */
static void grow(struct region *region, int by_mremap)
{
	uint32_t more = draw(PLACE_PAGES - region->pages + 1);
	uint64_t before = (uint64_t)(region->pages - region->first) * PAGE;

	if (!more)
		return;
	if (!by_mremap || mremap(page(region, region->first), before, before + (uint64_t)more * PAGE, 0) == MAP_FAILED)
		map_at(page(region, region->pages), more, MAP_PRIVATE);
	region->pages += more;
	fill(region, region->filled + draw(region->pages - region->filled + 1));
}

static void shrink(struct region *region)
{
	uint32_t left = region->first + 1 + draw(region->pages - region->first);

	if (left == region->pages)
		return;
	unmap(region, left, region->pages);
	region->pages = left;
	region->filled = region->filled < left ? region->filled : left;
	if (region->cursor >= region->filled) { /* the edge went with it */
		region->cursor = region->first;
		region->value += region->filled > region->first;
	}
}

static void cut_head(struct region *region)
{
	uint32_t first = region->first + draw(region->pages - region->first);

	if (first == region->first)
		return;
	unmap(region, region->first, first);
	region->first = first;
	region->filled = region->filled > first ? region->filled : first;
	region->cursor = region->cursor > first ? region->cursor : first;
}

static void move(struct region *region)
{
	struct region *to = free_place();
	uint64_t offset = (uint64_t)region->first * PAGE, length = (uint64_t)region->pages * PAGE - offset;

	if (!to || mremap(region->base + offset, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, address(to) + offset) == MAP_FAILED)
		return;
	*to = *region;
	to->base = address(to);
	region->base = NULL;
}

static void empty(struct region *region)
{
	if (madvise(page(region, region->first), (uint64_t)(region->pages - region->first) * PAGE, MADV_DONTNEED))
		fail("madvise");
	region->filled = region->cursor = region->first;
}

static void change(struct region *region)
{
	if (!region->base) {
		map_new(region);
		return;
	}
	if (region->closed) {
		protect(region, PROT_READ | PROT_WRITE);
		region->closed = 0;
		return;
	}
	switch (draw(10)) {
	case 0:
	case 1:
		unmap(region, region->first, region->pages);
		region->base = NULL;
		if (draw(2))
			map_new(region);
		break;
	case 2: grow(region, 1); break;
	case 3: grow(region, 0); break;
	case 4: shrink(region); break;
	case 5: cut_head(region); break;
	case 6: move(region); break;
	case 7: empty(region); break;
	case 8: fill(region, region->filled + draw(region->pages - region->filled + 1)); break;
	case 9:
		protect(region, PROT_NONE);
		region->closed = 1;
	}
}

static void churn(void)
{
	struct region *region = &places[draw(PLACES)];

	for (uint32_t i = draw(PLACE_PAGES); region->base && !region->closed && i > 0; i--)
		advance(region);
	change(&places[draw(PLACES)]);
	changes++;
}

static void step(struct worker *worker)
{
	uint64_t demand = demands;
	int lap = 0;

	pthread_rwlock_rdlock(&stepping);
	for (int i = 0; i < options.batch; i++)
		lap |= advance(&worker->region);
	for (int i = 0; worker == workers && shared && i < options.batch; i++)
		advance(&shared->parts[slot]);
	if (worker == workers && options.churn)
		churn();
	if (lap || demand != worker->demanded)
		verify_all(worker);
	worker->laps += lap;
	worker->demanded = demand;
	pthread_rwlock_unlock(&stepping);
}

static void pause_between_steps(void)
{
	nanosleep(&(struct timespec){ .tv_nsec = options.pause * 1000L }, NULL);
}

static void *work(void *worker)
{
	while (!stopping) {
		step(worker);
		pause_between_steps();
	}
	return NULL;
}

static void tell_children(int number)
{
	for (int i = 1; i < options.procs; i++)
		if (children[i])
			kill(children[i], number);
}

static void bury(int child)
{
	int status = 0;

	if (waitpid(children[child], &status, 0) != children[child] || status)
		fail("child");
	children[child] = 0;
}

/* In the child, its threads are to be started. */
static int make_child(int number)
{
	pid_t child;

	forks++;
	pthread_rwlock_wrlock(&stepping);
	child = fork();
	if (child < 0)
		fail("fork");
	if (child) {
		pthread_rwlock_unlock(&stepping);
		children[number] = child;
		return 0;
	}
	pthread_rwlock_init(&stepping, NULL); /* its owner, as it knows it, is the thread over there */
	memset(children, 0, sizeof(children));
	slot = number;
	steps = 0;
	return 1;
}

static void start_threads(void)
{
	for (int i = 1; i < options.threads; i++)
		if (pthread_create(&workers[i].thread, NULL, work, &workers[i]))
			fail("thread");
}

static void replace_a_child(void)
{
	int number = 1 + draw(options.procs - 1);

	kill(children[number], SIGTERM);
	bury(number);
	if (make_child(number))
		start_threads();
}

static void run(void)
{
	uint64_t told = demands;

	start_threads();
	while (!stopping) {
		uint64_t demand = demands;

		if (demand != told)
			tell_children(SIGUSR1);
		told = demand;
		step(&workers[0]);
		steps++;
		if (shared && slot == 0)
			shared->beat++;
		report("run");
		pause_between_steps();
		if (slot == 0 && options.forks && !stopping && steps % FORK_EVERY == 0)
			replace_a_child();
	}
	tell_children(SIGTERM);
	for (int i = 1; i < options.procs; i++)
		if (children[i])
			bury(i);
	for (int i = 1; i < options.threads; i++)
		pthread_join(workers[i].thread, NULL);
	for (int i = 0; i < options.threads; i++)
		verify_all(&workers[i]);
	report("bye");
}

static void *reserve(uint64_t length, int kind)
{
	void *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, kind | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		fail("mmap");
	return memory;
}

static void make_memory(void)
{
	uint32_t pages = options.size / PAGE, each = options.shared / PAGE / options.procs;

	for (int i = 0; i < options.threads; i++)
		begin(&workers[i].region, reserve(options.size, MAP_PRIVATE), pages, pages);
	if (options.still)
		begin(&still, reserve(options.still, MAP_PRIVATE), options.still / PAGE, options.still / PAGE);
	if (each) {
		shared = reserve(PAGE + (uint64_t)each * options.procs * PAGE, MAP_SHARED);
		for (int i = 0; i < options.procs; i++)
			begin(&shared->parts[i], (uint8_t *)shared + PAGE + (uint64_t)i * each * PAGE, each, each);
	}
}

static void on_signal(int number)
{
	if (number == SIGTERM)
		stopping = 1;
	else
		demands++;
}

static void usage(void)
{
	fprintf(stderr, "usage: edge --size BYTES --report FILE [--threads N] [--procs N] [--shared BYTES] [--still BYTES]"
			" [--churn] [--forks] [--batch PAGES] [--pause MICROSECONDS]\n");
	exit(2);
}

static void parse(int argc, char **argv)
{
	static const struct option names[] = {
		{ "size", 1, NULL, 's' },   { "report", 1, NULL, 'r' },		{ "threads", 1, NULL, 't' },
		{ "procs", 1, NULL, 'p' },  { "shared", 1, NULL, 'S' },		{ "still", 1, NULL, 'q' },
		{ "pause", 1, NULL, 'P' },  { "forks", 0, &options.forks, 1 }, { "batch", 1, NULL, 'b' },
		{ "churn", 0, &options.churn, 1 }, { 0 },
	};

	for (int name; (name = getopt_long(argc, argv, "", names, NULL)) != -1;) {
		switch (name) {
		case 's': options.size = strtoull(optarg, NULL, 0); break;
		case 'r': options.report = optarg; break;
		case 't': options.threads = atoi(optarg); break;
		case 'p': options.procs = atoi(optarg); break;
		case 'S': options.shared = strtoull(optarg, NULL, 0); break;
		case 'q': options.still = strtoull(optarg, NULL, 0); break;
		case 'b': options.batch = atoi(optarg); break;
		case 'P': options.pause = atoi(optarg); break;
		case 0: break;
		default: usage();
		}
	}
	if (optind != argc || !options.report || options.threads < 1 || options.threads > MAX_THREADS || options.procs < 1 ||
	    options.procs > MAX_PROCS || options.size < PAGE || options.batch < 0 || options.pause < 0 || options.pause > 999999 ||
	    (options.forks && options.procs == 1))
		usage();
}

int main(int argc, char **argv)
{
	parse(argc, argv);
	report_fd = open(options.report, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (report_fd < 0 || ftruncate(report_fd, (off_t)options.procs * REPORT_LINE)) {
		perror("edge: report");
		return 3;
	}
	signal(SIGTERM, on_signal);
	signal(SIGUSR1, on_signal);
	make_memory();
	for (int i = 1; i < options.procs && slot == 0; i++)
		make_child(i);
	run();
	return 0;
}
