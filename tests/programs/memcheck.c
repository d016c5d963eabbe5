/* A process that proves its own migration: it fills memory with a pattern it can recompute, goes on rewriting and verifying it,
 * and leaves two traces that a test reads.
 *
 *   memcheck --size BYTES --report FILE --history FILE [--threads N] [--procs N] [--compressible PERCENT]
 *            [--listen PORT] [--idle] [--huge] [--seed N] [--pause MICROSECONDS]
 *
 * The report has one line of REPORT_LINE bytes for each process, overwritten in place: state, pid, counter, verification passes. It
 * stays open, so a restore must bring the descriptor back. A wrong byte makes the line start with ERROR, and exit code 1.
 *
 * The history answers whether the process ever ran twice. It has one record for each counter value of each process: how often the
 * value was reached, by which pid, when. A second living copy, or one restored from an older state, reaches a value again.
 * It is a shared mapping of a file of fixed size rather than a growing log, because CRIU refuses to restore a process whose
 * open files have changed in size: that would hide the very copy that we look for.
 *
 * SIGUSR1: verify all memory at once (`demanded` rises when done). SIGTERM: verify once more, report "bye", exit 0.
 * --procs N makes N-1 children with memory of their own; the root forwards SIGTERM and reaps. --idle verifies, without writing.
 * --huge asks the kernel for transparent huge pages.
 * --pause is the time between two steps: what so many of them at once leave to others.
 * --listen answers each connection on 127.0.0.1:PORT with the counter.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
	PAGE = 4096,
	WORDS = PAGE / 8,
	REPORT_LINE = 192,
	HISTORY_RECORDS = 1 << 20, /* at 2 ms a step, half an hour */
	STEP_MICROSECONDS = 2000,
	STEP_VERIFIES = 32, /* pages: 63 MiB/s at most; with eight times as many it took a quarter of the CPU time of test_migrate */
	STEP_WRITES = 4,     /* pages: 8 MiB/s dirty at most */
	MAX_THREADS = 64,
};

struct record {
	_Atomic uint32_t times;
	uint32_t pid;
	uint64_t nanoseconds; /* when first reached, by CLOCK_REALTIME: CRIU lets a restored process's CLOCK_MONOTONIC go on from the dump */
};

/* A part of the memory, written and verified by one thread only. */
struct slice {
	pthread_t thread;
	uint64_t *words;
	uint64_t first, pages; /* in pages, `first` counted over the whole memory */
	uint64_t written;      /* pages ever rewritten: which rewrite each page has seen follows from it */
	uint64_t cursor;
	_Atomic uint64_t passes, demanded;
};

static struct {
	uint64_t size, seed;
	const char *report, *history;
	int threads, procs, compressible, port, idle, huge, pause;
} options = { .threads = 1, .procs = 1, .seed = 1, .pause = STEP_MICROSECONDS };

static struct slice slices[MAX_THREADS];
static int slot, report_fd, listener = -1;
static uint64_t counter;
static _Atomic uint64_t demands;
static _Atomic int stopping;

static uint64_t nanoseconds(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void write_line(char *line, int length)
{
	memset(line + length, ' ', REPORT_LINE - length);
	line[REPORT_LINE - 1] = '\n';
	if (pwrite(report_fd, line, REPORT_LINE, (off_t)slot * REPORT_LINE) != REPORT_LINE)
		_exit(3);
}

__attribute__((format(printf, 1, 2), noreturn)) static void fail(const char *format, ...)
{
	char line[REPORT_LINE];
	int length = snprintf(line, sizeof(line), "ERROR pid=%d ", getpid());
	va_list arguments;

	va_start(arguments, format);
	length += vsnprintf(line + length, sizeof(line) - length - 1, format, arguments);
	va_end(arguments);
	write_line(line, length < REPORT_LINE - 1 ? length : REPORT_LINE - 1);
	_exit(1);
}

/* The counter comes twice, so that a reader can tell a torn line. */
static void report(const char *state)
{
	uint64_t passes = UINT64_MAX, demanded = UINT64_MAX;
	char line[REPORT_LINE];

	for (int i = 0; i < options.threads; i++) {
		if (slices[i].passes < passes)
			passes = slices[i].passes;
		if (slices[i].demanded < demanded)
			demanded = slices[i].demanded;
	}
	write_line(line, snprintf(line, sizeof(line), "%s pid=%d counter=%lu passes=%lu demanded=%lu monotonic=%lu end=%lu", state,
				  getpid(), counter, passes, demanded, nanoseconds(CLOCK_MONOTONIC), counter));
}

/* splitmix64's finalizer (Steele, Lea, Flood 2014). */
static uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
	return x ^ (x >> 31);
}

/* What tells this page from every other page, of every other process, and from its own earlier contents. */
static uint64_t page_key(const struct slice *slice, uint64_t page)
{
	uint64_t rewrites = slice->written > page ? (slice->written - page - 1) / slice->pages + 1 : 0;

	return mix(options.seed + mix(((uint64_t)slot << 48) + slice->first + page + 1) + mix(rewrites << 1 | 1));
}

/* The first words of a page, as many as make it compressible, repeat its key; the rest look random. */
static uint64_t word(uint64_t key, int i)
{
	return i * 100 < options.compressible * WORDS ? key : mix(key + i * 0x9e3779b97f4a7c15);
}

static void fill_page(struct slice *slice, uint64_t page)
{
	uint64_t *words = slice->words + page * WORDS, key = page_key(slice, page);

	for (int i = 0; i < WORDS; i++)
		words[i] = word(key, i);
}

static void verify_page(const struct slice *slice, uint64_t page)
{
	const uint64_t *words = slice->words + page * WORDS;
	uint64_t key = page_key(slice, page), differs = 0;

	for (int i = 0; i < WORDS; i++)
		differs |= words[i] ^ word(key, i);
	for (int i = 0; differs && i < WORDS; i++)
		if (words[i] != word(key, i))
			fail("page %lu word %d holds %016lx instead of %016lx", slice->first + page, i, words[i], word(key, i));
}

static void verify_slice(struct slice *slice)
{
	for (uint64_t page = 0; page < slice->pages; page++)
		verify_page(slice, page);
	slice->passes++;
}

static void step(struct slice *slice)
{
	uint64_t demand = demands;

	if (demand != slice->demanded) {
		verify_slice(slice);
		slice->demanded = demand;
	}
	for (int i = 0; i < STEP_WRITES && !options.idle; i++) {
		slice->written++;
		fill_page(slice, (slice->written - 1) % slice->pages);
	}
	for (int i = 0; i < STEP_VERIFIES; i++) {
		verify_page(slice, slice->cursor);
		if (++slice->cursor == slice->pages) {
			slice->cursor = 0;
			slice->passes++;
			break;
		}
	}
}

static void pause_between_steps(void)
{
	nanosleep(&(struct timespec){ .tv_nsec = options.pause * 1000L }, NULL);
}

static void *run_slice(void *slice)
{
	while (!stopping) {
		step(slice);
		pause_between_steps();
	}
	return NULL;
}

static void make_memory(void)
{
	uint64_t pages = options.size / PAGE, first = 0;
	uint64_t *words = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (words == MAP_FAILED)
		fail("no memory: %lu bytes", options.size);
	if (options.huge && madvise(words, pages * PAGE, MADV_HUGEPAGE))
		fail("no transparent huge pages: %s", strerror(errno));
	for (int i = 0; i < options.threads; i++) {
		struct slice *slice = &slices[i];

		slice->words = words + first * WORDS;
		slice->first = first;
		slice->pages = pages * (i + 1) / options.threads - first;
		first += slice->pages;
		for (uint64_t page = 0; page < slice->pages; page++)
			fill_page(slice, page);
	}
}

static struct record *map_history(void)
{
	size_t length = sizeof(struct record) * HISTORY_RECORDS;
	int fd = open(options.history, O_RDWR);
	struct record *records = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)slot * length);

	if (fd < 0 || records == MAP_FAILED)
		fail("cannot map the history");
	close(fd);
	return records;
}

static void advance(struct record *records)
{
	if (counter == HISTORY_RECORDS)
		fail("the history is full");
	if (atomic_fetch_add(&records[counter].times, 1) == 0) {
		records[counter].pid = getpid();
		records[counter].nanoseconds = nanoseconds(CLOCK_REALTIME);
	}
	counter++;
}

static void answer_a_client(void)
{
	int client = listener < 0 ? -1 : accept4(listener, NULL, NULL, SOCK_CLOEXEC);

	if (client < 0)
		return;
	dprintf(client, "%lu\n", counter);
	close(client);
}

static void listen_on(int port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int one = 1;

	listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 16))
		fail("cannot listen on port %d", port);
}

static void check_children(void)
{
	int status;
	pid_t child = waitpid(-1, &status, WNOHANG);

	if (child > 0 && !stopping)
		fail("child %d left, status %x", child, status);
}

static void stop_children(const pid_t *children, int count)
{
	for (int i = 0; i < count; i++)
		kill(children[i], SIGTERM);
	for (int i = 0; i < count; i++) {
		int status = 0;

		if (waitpid(children[i], &status, 0) == children[i] && status)
			fail("child %d ended with status %x", children[i], status);
	}
}

static void on_signal(int number)
{
	if (number == SIGTERM)
		stopping = 1;
	else
		demands++;
}

static int run(const pid_t *children, int child_count)
{
	struct record *records;

	report("filling");
	records = map_history();
	make_memory();
	if (options.port && slot == 0)
		listen_on(options.port);
	for (int i = 1; i < options.threads; i++)
		if (pthread_create(&slices[i].thread, NULL, run_slice, &slices[i]))
			fail("cannot start thread %d", i);
	while (!stopping) {
		step(&slices[0]);
		answer_a_client();
		check_children();
		advance(records);
		report("run");
		pause_between_steps();
	}
	stop_children(children, child_count);
	for (int i = 1; i < options.threads; i++)
		pthread_join(slices[i].thread, NULL);
	for (int i = 0; i < options.threads; i++)
		verify_slice(&slices[i]);
	report("bye");
	return 0;
}

static void usage(void)
{
	fprintf(stderr, "usage: memcheck --size BYTES --report FILE --history FILE [--threads N] [--procs N]"
			" [--compressible PERCENT] [--listen PORT] [--idle] [--huge] [--seed N] [--pause MICROSECONDS]\n");
	exit(2);
}

static void parse(int argc, char **argv)
{
	static const struct option names[] = {
		{ "size", 1, NULL, 's' },    { "report", 1, NULL, 'r' },       { "history", 1, NULL, 'h' },
		{ "threads", 1, NULL, 't' }, { "procs", 1, NULL, 'p' },        { "compressible", 1, NULL, 'c' },
		{ "listen", 1, NULL, 'l' },  { "idle", 0, &options.idle, 1 }, { "seed", 1, NULL, 'e' },
		{ "pause", 1, NULL, 'P' },   { "huge", 0, &options.huge, 1 }, { 0 },
	};

	for (int name; (name = getopt_long(argc, argv, "", names, NULL)) != -1;) {
		switch (name) {
		case 's': options.size = strtoull(optarg, NULL, 0); break;
		case 'r': options.report = optarg; break;
		case 'h': options.history = optarg; break;
		case 't': options.threads = atoi(optarg); break;
		case 'p': options.procs = atoi(optarg); break;
		case 'c': options.compressible = atoi(optarg); break;
		case 'l': options.port = atoi(optarg); break;
		case 'e': options.seed = strtoull(optarg, NULL, 0); break;
		case 'P': options.pause = atoi(optarg); break;
		case 0: break;
		default: usage();
		}
	}
	if (optind != argc || !options.report || !options.history || options.threads < 1 || options.threads > MAX_THREADS ||
	    options.procs < 1 || options.pause < 0 || options.pause > 999999 || options.size / PAGE < (uint64_t)options.threads)
		usage();
}

static void make_files(void)
{
	int history_fd = open(options.history, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	report_fd = open(options.report, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (report_fd < 0 || ftruncate(report_fd, (off_t)options.procs * REPORT_LINE) || history_fd < 0 ||
	    ftruncate(history_fd, (off_t)options.procs * HISTORY_RECORDS * sizeof(struct record))) {
		perror("memcheck: report or history");
		exit(3);
	}
	close(history_fd);
}

int main(int argc, char **argv)
{
	pid_t *children;

	parse(argc, argv);
	make_files();
	signal(SIGTERM, on_signal);
	signal(SIGUSR1, on_signal);
	children = calloc(options.procs, sizeof(*children));
	for (int i = 1; i < options.procs; i++) {
		children[i - 1] = fork();
		if (children[i - 1] < 0)
			fail("cannot fork");
		if (children[i - 1] == 0) {
			slot = i;
			return run(NULL, 0);
		}
	}
	return run(children, options.procs - 1);
}
