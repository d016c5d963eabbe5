// The start of every program, and stacks that all ISAs can have. aarch64's kernel puts the stack where x86-64 cannot map
// anything, so the program gets one at an address of ours; arguments, environment and auxiliary vector go with it. What
// the vector tells of the ISA is left out.
#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#define STACK_TOP 0x7e0000000000UL
#define STACK_LEAST (8UL << 20)
#define STACK_MOST (256UL << 20)
#define TRIES 64
#define NO_REPLACE 0x100000
#define SIDE_STACK (8UL << 20)

enum { RANDOM = 25, FILE_NAME = 31, PHDR = 3, ENTRY = 9, UID = 11, EGID = 14, CLOCK_TICK = 17, SECURE = 23 };

long __unified_syscall(long, long, long, long, long, long, long);
void __unified_enter(long *stack);
long __cancel(void);
__attribute__((used)) long (*const unified_needed)(void) = __cancel; // runtime assembly jumps there
void __unified_deliver(int, void *, void *);
__attribute__((used)) void (*const unified_needed_too)(int, void *, void *) = __unified_deliver;
int main(int, char **, char **);
void _init(void) {}
void _fini(void) {}
int __libc_start_main(int (*)(), int, char **, void (*)(), void (*)(), void (*)());

static unsigned long stack_size(void)
{
	unsigned long limit[2] = {STACK_LEAST, 0};
	__unified_syscall(SYS_prlimit64, 0, RLIMIT_STACK, 0, (long)limit, 0, 0);
	unsigned long size = limit[0] < STACK_LEAST ? STACK_LEAST : limit[0] > STACK_MOST ? STACK_MOST : limit[0];
	return size & -4096UL;
}

static char *new_stack(void)
{
	unsigned long size = stack_size();
	long flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | NO_REPLACE;
	for (unsigned long i = 0, top = STACK_TOP; i < TRIES; i++, top -= 2 * size) {
		long got = __unified_syscall(SYS_mmap, top - size, size, PROT_READ | PROT_WRITE, flags, -1, 0);
		if (got == (long)(top - size))
			return (char *)top;
	}
	return 0;
}

static int is_kept(long type)
{
	return (type >= PHDR && type <= ENTRY) || (type >= UID && type <= EGID) || type == CLOCK_TICK || type == SECURE ||
	       type == RANDOM || type == FILE_NAME;
}

// Where the vector ends, and where the last string does.
static char *end_of(long *vector)
{
	char *end = (char *)vector;
	for (; vector[0]; vector += 2) {
		if (vector[0] == FILE_NAME)
			for (end = (char *)vector[1]; *end; end++)
				;
		else if (vector[0] == RANDOM && end < (char *)vector[1] + 16)
			end = (char *)vector[1] + 16;
	}
	return end + 1;
}

static long *moved(long *from)
{
	long *vector = from + 1;
	for (int lists = 0; lists < 2; vector++)
		lists += !*vector;
	char *end = end_of(vector), *top = new_stack();
	if (!top)
		return from;
	unsigned long size = (end - (char *)from + 15) & -16UL;
	long *to = (long *)(top - size), by = (char *)to - (char *)from;
	for (long i = 0; (char *)from + i < end; i++)
		((char *)to)[i] = ((char *)from)[i];
	long *one = to + 1;
	for (int lists = 0; lists < 2; one++)
		if (*one)
			*one += by;
		else
			lists++;
	long *kept = one;
	for (; one[0]; one += 2)
		if (is_kept(one[0])) {
			kept[0] = one[0];
			kept[1] = one[0] == RANDOM || one[0] == FILE_NAME ? one[1] + by : one[1];
			kept += 2;
		}
	kept[0] = kept[1] = 0;
	return to;
}

void _start_c(long *stack) { __unified_enter(moved(stack)); }

void __unified_main(long *stack)
{
	__libc_start_main((int (*)())main, stack[0], (char **)(stack + 1), _init, _fini, 0);
}

// The side stack of a thread: arrays of variable length and objects of large alignment, which frames of fixed layout
// cannot hold. How far it is filled is kept behind the thread pointer (SideStack.cpp).
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key;

static void leave(void *base)
{
	((void **)__builtin_thread_pointer())[1] = 0;
	munmap(base, SIDE_STACK);
}

static void make_key(void) { pthread_key_create(&key, leave); }

void *__unified_side_mark(void)
{
	void **place = (void **)__builtin_thread_pointer() + 1;
	if (!*place) {
		char *base = mmap(0, SIDE_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (base == MAP_FAILED || mprotect(base, 4096, PROT_NONE))
			__builtin_trap();
		pthread_once(&once, make_key);
		pthread_setspecific(key, base);
		*place = base + SIDE_STACK;
	}
	return *place;
}
