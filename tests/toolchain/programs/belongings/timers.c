// Timers that run, and signals that wait; where handlers run; how floating point rounds.
#include "belongings.h"

#include <fenv.h>
#include <sys/signalfd.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>

enum { FIRST = 100000, AGAIN = 50000, QUEUED = 3, STACK = 32768 };
#define QUEUE (SIGRTMIN + 1)
#define TIMER (SIGRTMIN + 2)
#define RESTORER 0x04000000 // libc's

static sigset_t only(int number)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, number);
	return set;
}

static char stack[STACK];
static volatile int handled;
static volatile char *handled_at;

static void handle(int number, siginfo_t *info, void *context)
{
	char here;
	(void)context;
	handled_at = &here;
	handled = info->si_signo == number ? number : -1;
}

static void fill_timers(void)
{
	static const int kinds[] = {ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF};
	for (int each = 0; each < 3; each++) {
		struct itimerval time = {{AGAIN + each, 500000}, {FIRST, 0}};
		MUST(!setitimer(kinds[each], &time, 0));
	}
}

static const char *look_timers(void)
{
	struct itimerval time, soon = {{0, 0}, {0, 1000}};
	for (int each = 0; each < 3; each++) {
		WANT(!getitimer(each, &time));
		WANT(WITHIN(time.it_value.tv_sec, FIRST) && time.it_interval.tv_usec == 500000);
		WANT(time.it_interval.tv_sec == AGAIN + each);
	}
	handled = 0;
	WANT(!setitimer(ITIMER_REAL, &soon, 0));
	for (struct timespec nap = {100, 0}; !handled;)
		nanosleep(&nap, &nap);
	WANT(handled == SIGALRM && handled_at > stack && handled_at < stack + STACK);
	return 0;
}

static timer_t real, steady;

static void fill_posix(void)
{
	struct itimerspec time = {{AGAIN, 500000000}, {FIRST, 0}};
	struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = TIMER, .sigev_value.sival_ptr = &real};
	static int made;
	if (!made++) {
		sigset_t set = only(TIMER);
		MUST(!sigprocmask(SIG_BLOCK, &set, 0) && !timer_create(CLOCK_REALTIME, &event, &real));
		event.sigev_notify = SIGEV_NONE;
		MUST(!timer_create(CLOCK_MONOTONIC, &event, &steady));
	}
	MUST(!timer_settime(real, 0, &time, 0) && !timer_settime(steady, 0, &time, 0));
}

static const char *look_posix(void)
{
	struct itimerspec time, soon = {{0, 0}, {0, 1000000}};
	sigset_t set = only(TIMER);
	siginfo_t info;
	timer_t each[2] = {real, steady};
	for (int one = 0; one < 2; one++) {
		WANT(!timer_gettime(each[one], &time) && WITHIN(time.it_value.tv_sec, FIRST));
		WANT(time.it_interval.tv_sec == AGAIN && time.it_interval.tv_nsec == 500000000);
	}
	WANT(!timer_settime(real, 0, &soon, 0) && sigwaitinfo(&set, &info) == TIMER);
	WANT(info.si_code == SI_TIMER && info.si_value.sival_ptr == &real);
	return 0;
}

static int ticking, expired;

static void fill_timerfd(void)
{
	struct itimerspec time = {{AGAIN, 500000000}, {FIRST, 0}}, now = {{0, 0}, {0, 1}};
	if (!ticking) {
		MUST((ticking = timerfd_create(CLOCK_REALTIME, 0)) >= 0);
		MUST((expired = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)) >= 0);
	}
	MUST(!timerfd_settime(ticking, 0, &time, 0) && !timerfd_settime(expired, 0, &now, 0));
}

static const char *look_timerfd(void)
{
	struct itimerspec time;
	unsigned long long count;
	WANT(!timerfd_gettime(ticking, &time) && WITHIN(time.it_value.tv_sec, FIRST));
	WANT(time.it_interval.tv_sec == AGAIN && time.it_interval.tv_nsec == 500000000);
	WANT(read(expired, &count, sizeof count) == sizeof count && count == 1);
	WANT(read(expired, &count, sizeof count) == -1 && errno == EAGAIN);
	return 0;
}

static int told;

static void fill_pending(void)
{
	sigset_t queue = only(QUEUE), user = only(SIGUSR1);
	MUST(!sigprocmask(SIG_BLOCK, &queue, 0) && !sigprocmask(SIG_BLOCK, &user, 0));
	if (!told)
		MUST((told = signalfd(-1, &user, SFD_CLOEXEC)) >= 0);
	for (int value = 1; value <= QUEUED; value++)
		MUST(!sigqueue(getpid(), QUEUE, (union sigval){.sival_ptr = (char *)0x123456789ab0 + value}));
	MUST(!raise(SIGUSR1));
}

static const char *look_pending(void)
{
	sigset_t set = only(QUEUE), all;
	siginfo_t info;
	struct signalfd_siginfo from;
	WANT(!sigpending(&all) && sigismember(&all, QUEUE) && sigismember(&all, SIGUSR1) && !sigismember(&all, SIGUSR2));
	for (int value = 1; value <= QUEUED; value++) {
		WANT(sigwaitinfo(&set, &info) == QUEUE && info.si_code == SI_QUEUE && info.si_pid == getpid());
		WANT(info.si_value.sival_ptr == (char *)0x123456789ab0 + value);
	}
	WANT(sigtimedwait(&set, &info, &(struct timespec){0}) == -1 && errno == EAGAIN);
	WANT(read(told, &from, sizeof from) == sizeof from && from.ssi_signo == SIGUSR1 && from.ssi_pid == getpid());
	return 0;
}

static void fill_handlers(void)
{
	stack_t there = {.ss_sp = stack, .ss_size = STACK};
	struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
	action.sa_mask = only(SIGHUP);
	MUST(!sigaltstack(&there, 0) && !sigaction(SIGALRM, &action, 0) && signal(SIGPROF, SIG_IGN) != SIG_ERR);
}

static const char *look_handlers(void)
{
	stack_t there;
	struct sigaction action;
	WANT(!sigaltstack(0, &there) && there.ss_sp == stack && there.ss_size == STACK && !there.ss_flags);
	WANT(!sigaction(SIGALRM, 0, &action) && action.sa_sigaction == handle);
	WANT((action.sa_flags & ~RESTORER) == (SA_SIGINFO | SA_ONSTACK | SA_NODEFER));
	WANT(sigismember(&action.sa_mask, SIGHUP) == 1);
	WANT(!sigismember(&action.sa_mask, SIGINT) && !sigaction(SIGPROF, 0, &action) && action.sa_handler == SIG_IGN);
	return 0;
}

static volatile double one = 1, three = 3, none = 0;

static void fill_rounding(void)
{
	volatile double infinite = one / none;
	(void)infinite;
	MUST(!feclearexcept(FE_ALL_EXCEPT) && !fesetround(FE_UPWARD) && !feraiseexcept(FE_DIVBYZERO));
}

static const char *look_rounding(void)
{
	WANT(fegetround() == FE_UPWARD && fetestexcept(FE_ALL_EXCEPT & ~FE_INEXACT) == FE_DIVBYZERO);
	volatile double up = one / three, down;
	WANT(!fesetround(FE_DOWNWARD));
	down = one / three;
	WANT(up > down && !fesetround(FE_TONEAREST));
	return 0;
}

const struct thing timers[] = {
	{"handlers", fill_handlers, look_handlers},
	{"interval timers", fill_timers, look_timers},
	{"POSIX timers", fill_posix, look_posix},
	{"timerfd", fill_timerfd, look_timerfd},
	{"pending signals", fill_pending, look_pending},
	{"rounding", fill_rounding, look_rounding},
	{0},
};
