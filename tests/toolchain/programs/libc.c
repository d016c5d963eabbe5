// What our build of the libc does differently from any other, or what depends on that: processes made in every way, timers
// and signals to threads, stacks for handlers, locks and messages of the kernel's, flags of files, the auxiliary vector.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/eventfd.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;
static volatile sig_atomic_t got, depth;
static sem_t posted;

static int in_clone(void *argument) { return *(int *)argument - 36; }

static void processes(void)
{
	int status, value = 41;
	char *stack = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pid_t child = clone(in_clone, stack + 65536, CLONE_VM | CLONE_VFORK | SIGCHLD, &value);
	waitpid(child, &status, 0);
	printf("clone %d\n", WEXITSTATUS(status));
	posix_spawn_file_actions_t actions;
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
	char *words[] = {"sh", "-c", "read x || exit 9", 0};
	int failed = posix_spawnp(&child, "sh", &actions, 0, words, environ);
	waitpid(child, &status, 0);
	printf("spawn %d %d %d\n", failed, WEXITSTATUS(status), posix_spawn(&child, "/nowhere", 0, 0, words, environ));
	printf("system %d\n", WEXITSTATUS(system("exit 3")));
	FILE *pipe = popen("echo through a pipe", "r");
	char line[64] = "";
	fgets(line, sizeof line, pipe);
	printf("%s%d\n", line, pclose(pipe));
	if (!(child = fork())) {
		raise(SIGKILL);
		_exit(1);
	}
	siginfo_t info;
	waitid(P_PID, child, &info, WEXITED);
	printf("waitid %d %d %d\n", info.si_code == CLD_KILLED, info.si_status == SIGKILL, info.si_pid == child);
	struct rusage usage;
	child = wait4(-1, &status, 0, &usage);
	printf("wait4 %d %d\n", child, errno == ECHILD);
}

static void on_timer(union sigval value)
{
	got = value.sival_int;
	sem_post(&posted);
}

static void timers(void)
{
	sem_init(&posted, 0, 0);
	struct sigevent event = {.sigev_notify = SIGEV_THREAD, .sigev_value.sival_int = 77, .sigev_notify_function = on_timer};
	struct itimerspec soon = {{0, 0}, {0, 5000000}};
	timer_t timer;
	printf("timer %d ", timer_create(CLOCK_MONOTONIC, &event, &timer));
	printf("%d\n", timer_settime(timer, 0, &soon, 0));
	while (sem_wait(&posted))
		;
	printf("%d %d\n", got, timer_delete(timer));
	int fd = timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC);
	unsigned long times = 0;
	timerfd_settime(fd, 0, &soon, 0);
	long bytes = read(fd, &times, sizeof times);
	printf("%ld %lu\n", bytes, times);
	sigset_t alarm_only;
	sigemptyset(&alarm_only);
	sigaddset(&alarm_only, SIGALRM);
	sigprocmask(SIG_BLOCK, &alarm_only, 0);
	struct itimerval tick = {{0, 0}, {0, 5000}};
	setitimer(ITIMER_REAL, &tick, 0);
	int number = 0;
	printf("%d ", sigwait(&alarm_only, &number));
	printf("%d\n", number == SIGALRM);
	struct timespec nothing = {0, 1000};
	number = sigtimedwait(&alarm_only, 0, &nothing);
	printf("%d %d\n", number, errno == EAGAIN);
	struct timespec due;
	clock_gettime(CLOCK_REALTIME, &due);
	due.tv_nsec += due.tv_nsec < 999000000 ? 1000000 : 0;
	number = sem_timedwait(&posted, &due);
	printf("%d %d\n", number, errno == ETIMEDOUT);
	struct timespec later = {due.tv_sec - 5, 0};
	printf("%d\n", clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &later, 0));
}

static char handler_stack[65536];

static void on_stack(int number)
{
	char here;
	depth += &here > handler_stack && &here < handler_stack + sizeof handler_stack;
}

static void nested(int number)
{
	jmp_buf out;
	depth++;
	if (number == SIGUSR1)
		raise(SIGUSR2);
	if (!setjmp(out))
		longjmp(out, 1);
	got += depth;
	depth--;
}

static void *waits(void *argument)
{
	sigset_t *set = argument;
	int number;
	sigwait(set, &number);
	return (void *)(long)(number == SIGUSR1 ? 1 : 0);
}

static void signals(void)
{
	stack_t stack = {.ss_sp = handler_stack, .ss_size = sizeof handler_stack}, old;
	struct sigaction action = {.sa_handler = on_stack, .sa_flags = SA_ONSTACK | SA_RESETHAND};
	sigaltstack(&stack, 0);
	sigaction(SIGUSR1, &action, 0);
	depth = 0;
	raise(SIGUSR1);
	sigaction(SIGUSR1, 0, &action);
	sigaltstack(0, &old);
	printf("sigaltstack %d %d %d\n", depth, action.sa_handler == SIG_DFL, old.ss_sp == handler_stack);
	depth = got = 0;
	signal(SIGUSR1, nested);
	signal(SIGUSR2, nested);
	raise(SIGUSR1);
	printf("nested %d %d\n", depth, got);
	sigset_t set, none;
	sigemptyset(&none);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, 0);
	depth = got = 0;
	kill(getpid(), SIGUSR1);
	int before = got;
	int result = sigsuspend(&none);
	printf("sigsuspend %d %d %d %d\n", before, result, errno == EINTR, got);
	pthread_t thread;
	void *came;
	pthread_create(&thread, 0, waits, &set);
	pthread_kill(thread, SIGUSR1);
	pthread_join(thread, &came);
	printf("pthread_kill %ld\n", (long)came);
	int fd = signalfd(-1, &set, SFD_CLOEXEC);
	struct signalfd_siginfo info;
	sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = 1234});
	long bytes = read(fd, &info, sizeof info);
	printf("signalfd %d %d %d\n", bytes == sizeof info, info.ssi_int, info.ssi_signo == SIGUSR1);
	close(fd);
}

static pthread_key_t key;
static pthread_barrier_t barrier;
static pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER;
static int destroyed, serial, shared;

static void destroy(void *value) { destroyed += (int)(long)value; }

static void *member(void *argument)
{
	pthread_setspecific(key, argument);
	if (pthread_barrier_wait(&barrier) == PTHREAD_BARRIER_SERIAL_THREAD)
		serial++;
	for (int i = 0; i < 1000; i++) {
		pthread_rwlock_wrlock(&lock);
		shared++;
		pthread_rwlock_unlock(&lock);
	}
	pthread_exit(argument);
}

static void threads(void)
{
	pthread_t all[4];
	pthread_attr_t how;
	void *result;
	long sum = 0;
	size_t size;
	pthread_attr_init(&how);
	pthread_attr_setstacksize(&how, 1 << 18);
	pthread_key_create(&key, destroy);
	pthread_barrier_init(&barrier, 0, 4);
	for (long i = 0; i < 4; i++)
		pthread_create(&all[i], &how, member, (void *)(i + 1));
	for (int i = 0; i < 4; i++) {
		pthread_join(all[i], &result);
		sum += (long)result;
	}
	pthread_attr_getstacksize(&how, &size);
	printf("threads %ld %d %d %d %zu\n", sum, destroyed, serial, shared, size);
	pthread_mutexattr_t kind;
	pthread_mutex_t mutex;
	pthread_mutexattr_init(&kind);
	pthread_mutexattr_settype(&kind, PTHREAD_MUTEX_ERRORCHECK);
	pthread_mutex_init(&mutex, &kind);
	pthread_mutex_lock(&mutex);
	printf("%d ", pthread_mutex_lock(&mutex) == EDEADLK);
	printf("%d\n", pthread_mutex_trylock(&mutex) == EBUSY);
	cpu_set_t set;
	printf("%d\n", sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0);
}

static void flags(void)
{
	int fd = open("/tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC), both[2];
	int kept = fcntl(fd, F_GETFL) & (O_ACCMODE | O_DIRECTORY | O_NOFOLLOW | O_DIRECT | O_NONBLOCK);
	printf("flags %d %d\n", kept == O_DIRECTORY, fcntl(fd, F_GETFD) == FD_CLOEXEC);
	int unnamed = openat(fd, ".", O_TMPFILE | O_RDWR, 0600);
	int usual = unnamed >= 0 ? unnamed : open("/tmp", O_RDONLY);
	int again = dup3(usual, 90, O_CLOEXEC);
	printf("%d %d\n", again, fcntl(usual, F_DUPFD_CLOEXEC, 91));
	pipe2(both, O_DIRECT | O_NONBLOCK);
	write(both[1], "ab", 2);
	write(both[1], "cd", 2);
	char text[8] = "";
	kept = fcntl(both[1], F_GETFL) & (O_DIRECT | O_DIRECTORY | O_NONBLOCK);
	printf("%ld %d\n", (long)read(both[0], text, sizeof text), kept == (O_DIRECT | O_NONBLOCK));
	struct flock range = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 5, .l_len = 10};
	char name[] = "/tmp/hetcc.XXXXXX";
	int file = mkostemp(name, O_CLOEXEC);
	fcntl(file, F_SETLK, &range);
	pid_t child = fork();
	if (!child) {
		fcntl(file, F_GETLK, &range);
		_exit(range.l_type == F_WRLCK && range.l_start == 5 && range.l_len == 10 && range.l_pid == getppid() ? 11 : 12);
	}
	int status;
	waitpid(child, &status, 0);
	unlink(name);
	printf("lock %d\n", WEXITSTATUS(status));
	struct iovec parts[2] = {{"over", 4}, {"lap", 3}};
	char back[8] = "";
	printf("%ld ", (long)pwritev(file, parts, 2, 1));
	printf("%ld ", (long)pread(file, back, 7, 1));
	printf("%s\n", back);
	struct statvfs system;
	int failed = fstatvfs(file, &system);
	printf("%d %d\n", failed, system.f_namemax > 0 && system.f_bsize > 0);
}

static void messages(void)
{
	struct { long type; char text[8]; } one = {7, "letter"}, two = {0};
	int queue = msgget(IPC_PRIVATE, 0600), segment = shmget(IPC_PRIVATE, 10000, 0600), group = semget(IPC_PRIVATE, 2, 0600);
	struct msqid_ds queued;
	struct shmid_ds held;
	msgsnd(queue, &one, 8, 0);
	msgctl(queue, IPC_STAT, &queued);
	printf("messages %d %d ", (int)queued.msg_qnum, (int)queued.msg_perm.mode & 0777);
	long received = msgrcv(queue, &two, 8, 7, 0);
	printf("%ld %s\n", received, two.text);
	char *at = shmat(segment, 0, 0);
	strcpy(at + 5000, "shared");
	shmctl(segment, IPC_STAT, &held);
	printf("%d %d %s\n", (int)held.shm_segsz, (int)held.shm_nattch, at + 5000);
	union { int value; } three = {3};
	struct sembuf down = {1, -2, IPC_NOWAIT};
	semctl(group, 1, SETVAL, three);
	received = semop(group, &down, 1);
	printf("%ld %d\n", received, semctl(group, 1, GETVAL));
	printf("%d %d %d\n", msgctl(queue, IPC_RMID, 0), shmctl(segment, IPC_RMID, 0), semctl(group, 0, IPC_RMID));
	int ends[2], sent = eventfd(5, EFD_CLOEXEC), came = -1;
	socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends);
	char control[CMSG_SPACE(sizeof(int))] = {0}, body[4];
	struct iovec part = {"fd", 2};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = SCM_RIGHTS;
	head->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(head), &sent, sizeof sent);
	sendmsg(ends[0], &message, 0);
	part = (struct iovec){body, sizeof body};
	long bytes = recvmsg(ends[1], &message, MSG_CMSG_CLOEXEC);
	memcpy(&came, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof came);
	eventfd_t value = 0;
	eventfd_read(came, &value);
	printf("%ld %d %d\n", bytes, came > 0 && came != sent, (int)value);
}

static void about(void)
{
	struct rlimit files;
	struct utsname name;
	struct sysinfo all;
	getrlimit(RLIMIT_NOFILE, &files);
	uname(&name);
	sysinfo(&all);
	printf("about %d %d %d\n", files.rlim_cur > 3, strcmp(name.sysname, "Linux"), all.totalram > 0);
	printf("%d %d %d\n", (int)getauxval(AT_PAGESZ), getauxval(AT_UID) == getuid(), getauxval(AT_RANDOM) != 0);
	printf("%d %ld %d\n", getauxval(AT_ENTRY) != 0, sysconf(_SC_PAGESIZE), sysconf(_SC_NPROCESSORS_ONLN) > 0);
	setenv("HETCC_TEST", "set", 1);
	printf("%s %ld\n", getenv("HETCC_TEST"), (long)strtold("1e3", 0));
}

int main(void)
{
	setvbuf(stdout, 0, _IONBF, 0);
	alarm(120);
	processes();
	timers();
	signals();
	threads();
	flags();
	messages();
	about();
	return 0;
}
