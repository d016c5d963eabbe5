// Threads that wait in system calls of all kinds: with a time, for data, for room, for a signal, for others. A call that
// was interrupted says so, as it may (EINTR), and is made again; nothing but what it waits for may end it.
#include "belongings.h"

#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

enum { LONG = 100000, FULL = 1 << 17 };
#define WOKEN (SIGRTMIN + 3)

struct waiter {
	const char *(*wait)(struct waiter *);
	void (*wake)(struct waiter *);
	pthread_t thread;
	sem_t go, done;
	const char *wrong;
	int ends[2];
	volatile int woken;
	sem_t wanted;
	pid_t child;
};

static void *turns(void *argument)
{
	struct waiter *one = argument;
	for (;;) {
		while (sem_wait(&one->go))
			;
		one->wrong = one->wait(one);
		sem_post(&one->done);
	}
}

static void nothing(int number)
{
	(void)number;
}

// Until it has come back: the signal may come before the call.
static void wake_by_signal(struct waiter *one)
{
	int done;
	one->woken = 1;
	do {
		pthread_kill(one->thread, WOKEN);
		nanosleep(&(struct timespec){0, 20000000}, 0);
		sem_getvalue(&one->done, &done);
	} while (!done);
}

static void wake_by_byte(struct waiter *one)
{
	one->woken = write(one->ends[1], "!", 1);
}

static const char *in_nanosleep(struct waiter *one)
{
	struct timespec rest = {LONG, 0};
	while (!one->woken) {
		WANT(nanosleep(&rest, &rest) == -1 && errno == EINTR);
		WANT(WITHIN(rest.tv_sec, LONG));
	}
	return 0;
}

static const char *in_clock_nanosleep(struct waiter *one)
{
	struct timespec end;
	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += LONG;
	while (!one->woken)
		WANT(clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &end, 0) == EINTR);
	return 0;
}

static const char *in_poll(struct waiter *one)
{
	struct pollfd waited = {one->ends[0], POLLIN, 0};
	int ready;
	do
		ready = poll(&waited, 1, LONG * 1000);
	while (ready == -1 && errno == EINTR);
	WANT(ready == 1 && waited.revents == POLLIN && read(one->ends[0], &(char){0}, 1) == 1);
	return 0;
}

static const char *in_ppoll(struct waiter *one)
{
	struct pollfd waited = {one->ends[0], POLLIN, 0};
	sigset_t mask, after;
	int ready;
	sigfillset(&mask);
	do
		ready = ppoll(&waited, 1, &(struct timespec){LONG, 0}, &mask);
	while (ready == -1 && errno == EINTR);
	WANT(ready == 1 && waited.revents == POLLIN && read(one->ends[0], &(char){0}, 1) == 1);
	WANT(!pthread_sigmask(SIG_BLOCK, 0, &after) && sigismember(&after, SIGTERM) && !sigismember(&after, WOKEN));
	return 0;
}

static const char *in_epoll(struct waiter *one)
{
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = one};
	static int watch;
	int ready;
	if (!watch)
		WANT((watch = epoll_create1(0)) >= 0 && !epoll_ctl(watch, EPOLL_CTL_ADD, one->ends[0], &event));
	event.data.ptr = 0;
	do
		ready = epoll_wait(watch, &event, 1, LONG * 1000);
	while (ready == -1 && errno == EINTR);
	WANT(ready == 1 && event.data.ptr == one && read(one->ends[0], &(char){0}, 1) == 1);
	return 0;
}

static const char *in_read(struct waiter *one)
{
	char byte = 0;
	WANT(read(one->ends[0], &byte, 1) == 1 && byte == '!');
	return 0;
}

static const char *in_write(struct waiter *one)
{
	static char data[FULL];
	for (int at = 0; at < FULL; at++)
		data[at] = at / 100;
	for (int done = 0, more; done < FULL; done += more) {
		more = write(one->ends[1], data + done, FULL - done);
		WANT(more > 0);
	}
	return 0;
}

static void make_room(struct waiter *one)
{
	static char data[FULL];
	for (int done = 0, more; done < FULL; done += more) {
		more = read(one->ends[0], data + done, FULL - done);
		MUST(more > 0);
	}
	for (int at = 0; at < FULL; at++)
		one->woken += data[at] == (char)(at / 100);
	MUST(one->woken == FULL);
}

static struct sockaddr_un *address(void)
{
	static struct sockaddr_un name = {.sun_family = AF_UNIX};
	snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "belongings-%d", getpid());
	return &name;
}

static const char *in_accept(struct waiter *one)
{
	static int listening;
	if (!listening) {
		WANT((listening = socket(AF_UNIX, SOCK_STREAM, 0)) >= 0);
		WANT(!bind(listening, (void *)address(), sizeof *address()) && !listen(listening, 1));
	}
	int taken = accept(listening, 0, 0);
	WANT(taken >= 0 && !close(taken) && one->woken);
	return 0;
}

static void connect_to(struct waiter *one)
{
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	one->woken = 1;
	MUST(fd >= 0);
	while (connect(fd, (void *)address(), sizeof *address()))
		nanosleep(&(struct timespec){0, 1000000}, 0); // it has not begun to listen
	close(fd);
}

static const char *in_semaphore(struct waiter *one)
{
	struct timespec end;
	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += LONG;
	while (sem_timedwait(&one->wanted, &end))
		WANT(errno == EINTR);
	WANT(one->woken);
	return 0;
}

static void post(struct waiter *one)
{
	one->woken = 1;
	sem_post(&one->wanted);
}

static const char *in_sigwait(struct waiter *one)
{
	sigset_t set, before;
	siginfo_t info;
	int number;
	sigemptyset(&set);
	sigaddset(&set, WOKEN);
	pthread_sigmask(SIG_BLOCK, &set, &before);
	do
		number = sigtimedwait(&set, &info, &(struct timespec){LONG, 0});
	while (number == -1 && errno == EINTR);
	pthread_sigmask(SIG_SETMASK, &before, 0);
	WANT(number == WOKEN && info.si_code == SI_TKILL && one->woken);
	return 0;
}

static const char *in_sigsuspend(struct waiter *one)
{
	sigset_t set, before, after;
	sigemptyset(&set);
	sigaddset(&set, WOKEN);
	pthread_sigmask(SIG_BLOCK, &set, &before);
	while (!one->woken) {
		WANT(sigsuspend(&before) == -1 && errno == EINTR);
		WANT(!pthread_sigmask(SIG_BLOCK, 0, &after) && sigismember(&after, WOKEN));
	}
	pthread_sigmask(SIG_SETMASK, &before, 0);
	return 0;
}

static const char *in_waitpid(struct waiter *one)
{
	int status;
	pid_t child = fork();
	WANT(child >= 0);
	if (!child)
		for (;;)
			pause();
	one->child = child;
	WANT(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	return 0;
}

static void end_child(struct waiter *one)
{
	while (!one->child)
		nanosleep(&(struct timespec){0, 1000000}, 0);
	kill(one->child, SIGKILL);
}

static struct waiter waiters[] = {
	{in_nanosleep, wake_by_signal}, {in_clock_nanosleep, wake_by_signal}, {in_poll, wake_by_byte},
	{in_ppoll, wake_by_byte},       {in_epoll, wake_by_byte},             {in_read, wake_by_byte},
	{in_write, make_room},          {in_accept, connect_to},              {in_semaphore, post},
	{in_sigwait, wake_by_signal},   {in_sigsuspend, wake_by_signal},      {in_waitpid, end_child},
};
enum { WAITERS = sizeof waiters / sizeof *waiters };

static void start(struct waiter *one)
{
	sigset_t all, before;
	MUST(!sem_init(&one->go, 0, 0) && !sem_init(&one->done, 0, 0) && !sem_init(&one->wanted, 0, 0) && !pipe(one->ends));
	sigfillset(&all);
	sigdelset(&all, WOKEN);
	pthread_sigmask(SIG_SETMASK, &all, &before); // what is for the first thread is none of theirs
	MUST(!pthread_create(&one->thread, 0, turns, one));
	pthread_sigmask(SIG_SETMASK, &before, 0);
}

static void fill_waits(void)
{
	struct sigaction action = {.sa_handler = nothing};
	MUST(!sigaction(WOKEN, &action, 0));
	for (int each = 0; each < WAITERS; each++) {
		if (!waiters[each].thread)
			start(&waiters[each]);
		waiters[each].woken = 0;
		waiters[each].child = 0;
		sem_post(&waiters[each].go);
	}
}

static const char *look_waits(void)
{
	int early;
	for (int each = 0; each < WAITERS; each++) {
		struct waiter *one = &waiters[each];
		WANT(!sem_getvalue(&one->done, &early));
		if (!early)
			one->wake(one);
		while (sem_wait(&one->done))
			;
		if (one->wrong)
			return one->wrong;
		WANT(!early);
	}
	return 0;
}

const struct thing waits[] = {{"waits", fill_waits, look_waits}, {0}};
