// What the kernels of two ISAs give in different structures, flags and ways: files, events, signals, cancellation.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <fenv.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

static sigjmp_buf out;
static volatile sig_atomic_t got;
static void *stack_pointer;

static void files(void)
{
	char name[] = "/tmp/hetcc.XXXXXX";
	int fd = mkstemp(name);
	struct stat by_name, by_fd;
	fchmod(fd, 0640);
	ftruncate(fd, 12345);
	stat(name, &by_name);
	fstat(fd, &by_fd);
	printf("%o %ld %d %d\n", by_fd.st_mode, (long)by_fd.st_size, (int)by_fd.st_nlink, by_name.st_ino == by_fd.st_ino);
	int opened = open(name, O_RDONLY | O_DIRECTORY);
	printf("%d %d\n", opened, errno == ENOTDIR);
	char link[] = "/tmp/hetcc.link.XXXXXX";
	mktemp(link);
	symlink(name, link);
	opened = open(link, O_RDONLY | O_NOFOLLOW);
	printf("%d %d\n", opened, errno == ELOOP);
	printf("%d\n", fcntl(fd, F_SETFL, O_NONBLOCK | O_APPEND));
	printf("%d\n", (fcntl(fd, F_GETFL) & (O_NONBLOCK | O_APPEND | O_DIRECTORY | O_DIRECT)) == (O_NONBLOCK | O_APPEND));
	unlink(name);
	unlink(link);
	char *map = mmap(0, 12345, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	strcpy(map + 12000, "moved");
	map = mremap(map, 12345, 1 << 24, MREMAP_MAYMOVE);
	printf("%s %d %d\n", map + 12000, (unsigned long)map >> 47 == 0, (unsigned long)&map >> 47 == 0);
}

static void events(void)
{
	int ep = epoll_create1(0), pair[4];
	pipe2(pair, O_CLOEXEC | O_NONBLOCK);
	pipe(pair + 2);
	struct epoll_event one = {EPOLLIN, {.u64 = 0x1122334455667788}}, two = {EPOLLIN, {.u64 = 0x99aabbccddeeff00}}, found[8];
	epoll_ctl(ep, EPOLL_CTL_ADD, pair[0], &one);
	epoll_ctl(ep, EPOLL_CTL_ADD, pair[2], &two);
	write(pair[1], "x", 1);
	write(pair[3], "x", 1);
	int n = epoll_wait(ep, found, 8, 1000);
	for (int i = 0; i < n; i++)
		printf("%x %lx\n", found[i].events, found[i].data.u64);
	printf("%d %d\n", epoll_ctl(ep, EPOLL_CTL_DEL, pair[0], 0), epoll_ctl(ep, EPOLL_CTL_DEL, pair[2], 0));
	printf("%d\n", epoll_wait(ep, found, 8, 1));
}

static void plain(int number) { got = number; }

static void with_context(int number, siginfo_t *info, void *context)
{
	ucontext_t *u = context;
	got = number + info->si_value.sival_int;
	stack_pointer = u->uc_stack.ss_sp;
	sigaddset(&u->uc_sigmask, SIGUSR2);
}

static void jump(int number) { siglongjmp(out, number); }

static void signals(void)
{
	struct sigaction old, action = {.sa_handler = plain};
	sigaction(SIGUSR1, &action, 0);
	raise(SIGUSR1);
	printf("%d %d\n", got == SIGUSR1, sigaction(SIGUSR1, 0, &old) == 0 && old.sa_handler == plain);
	action.sa_sigaction = with_context;
	action.sa_flags = SA_SIGINFO;
	sigaction(SIGUSR1, &action, &old);
	sigqueue(getpid(), SIGUSR1, (union sigval){1000});
	sigset_t mask;
	sigprocmask(SIG_SETMASK, 0, &mask);
	printf("%d %d %d\n", got == SIGUSR1 + 1000, old.sa_handler == plain, sigismember(&mask, SIGUSR2));
	sigemptyset(&mask);
	sigprocmask(SIG_SETMASK, &mask, 0);
	signal(SIGSEGV, jump);
	volatile int times = 0;
	int came = sigsetjmp(out, 1);
	sigprocmask(SIG_SETMASK, 0, &mask);
	printf("%d %d\n", came == SIGSEGV, sigismember(&mask, SIGSEGV));
	if (times++ < 3)
		*(volatile char *)8 = 1;
	signal(SIGUSR1, SIG_DFL);
	printf("%d\n", sigaction(SIGUSR1, 0, &old) == 0 && old.sa_handler == SIG_DFL);
}

static void say(void *what) { printf("cleanup %s\n", (char *)what); }

static void *blocked(void *argument)
{
	int pair[2];
	char c;
	pipe(pair);
	pthread_cleanup_push(say, argument);
	read(pair[0], &c, 1);
	pthread_cleanup_pop(0);
	return 0;
}

static void *computing(void *argument)
{
	pthread_cleanup_push(say, argument);
	for (;;)
		pthread_testcancel();
	pthread_cleanup_pop(0);
	return 0;
}

static void cancel(void *(*work)(void *), char *name)
{
	pthread_t thread;
	void *result;
	pthread_create(&thread, 0, work, name);
	usleep(20000);
	pthread_cancel(thread);
	pthread_join(thread, &result);
	printf("%d\n", result == PTHREAD_CANCELED);
}

static void rounding(void)
{
	volatile double one = 1, three = 3;
	for (int i = 0; i < 4; i++) {
		int mode = (int[]){FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}[i];
		int set = fesetround(mode), is = fegetround();
		volatile double third = one / three, minus = -one / three;
		fesetround(FE_TONEAREST);
		printf("%d %d %a %a\n", set, is == mode, third, minus);
	}
	feclearexcept(FE_ALL_EXCEPT);
	volatile double zero = 0, infinite = one / zero;
	printf("%d %d\n", fetestexcept(FE_DIVBYZERO) != 0, fetestexcept(FE_INVALID | FE_OVERFLOW));
	feraiseexcept(FE_OVERFLOW);
	printf("%d %g\n", fetestexcept(FE_OVERFLOW) != 0, infinite);
}

int main(void)
{
	setvbuf(stdout, 0, _IONBF, 0);
	files();
	events();
	signals();
	cancel(blocked, "blocked");
	cancel(computing, "computing");
	rounding();
	pid_t child = vfork();
	if (!child)
		_exit(7);
	int status;
	waitpid(child, &status, 0);
	printf("%d\n", WEXITSTATUS(status));
	return 0;
}
