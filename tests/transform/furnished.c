/* A process with one of everything that images describe, for tests that dump it, change the images and restore it.
 *
 * In its working directory it makes data.txt (open), gone.txt (open, removed), fifo (open) and name.sock (bound). It has
 * a pipe and a socket pair with data in them, shared memory, three private pages at PRIVATE of which the middle one is
 * never touched, a child and a thread. With a port as its argument it listens there (IPv4) and keeps one connection to
 * itself. It says "ready" on stdout and closes it; on SIGUSR1 it writes what it sees of itself to report.txt and exits. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define PRIVATE ((char *)0x100000000)
#define SHARED ((char *)0x200000000)
#define PAGE 4096

static void must(int ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(1);
	}
}

static void *wait_for_ever(void *unused)
{
	for (;;)
		pause();
	return unused;
}

static char *map(char *address, int pages, int how)
{
	char *got = mmap(address, pages * PAGE, PROT_READ | PROT_WRITE, how | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	must(got == address, "mmap");
	return got;
}

static int bound_socket(void)
{
	struct sockaddr_un name = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	must(getcwd(name.sun_path, sizeof(name.sun_path) - 16) != NULL, "getcwd");
	strcat(name.sun_path, "/name.sock");
	must(bind(fd, (struct sockaddr *)&name, sizeof(name)) == 0 && listen(fd, 5) == 0, "bind name.sock");
	return fd;
}

static int listener(int port)
{
	struct sockaddr_in name = { AF_INET, htons(port), { htonl(INADDR_LOOPBACK) }, { 0 } };
	int yes = 1, fd = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
	must(bind(fd, (struct sockaddr *)&name, sizeof(name)) == 0 && listen(fd, 5) == 0, "bind port");
	must(connect(client, (struct sockaddr *)&name, sizeof(name)) == 0, "connect");
	must(accept(fd, NULL, NULL) == client + 1, "accept");
	return fd;
}

static void print_link(FILE *report, const char *what, const char *link)
{
	char target[PATH_MAX] = { 0 };

	must(readlink(link, target, sizeof(target) - 1) > 0, link);
	fprintf(report, "%s=%s\n", what, target);
}

static void print_ports(FILE *report, int listening)
{
	struct sockaddr_in name;
	socklen_t length = sizeof(name);
	char echo[8] = { 0 };

	must(getsockname(listening, (struct sockaddr *)&name, &length) == 0, "getsockname");
	fprintf(report, "listens=%d\n", ntohs(name.sin_port));
	must(getsockname(listening + 2, (struct sockaddr *)&name, &length) == 0, "getsockname");
	fprintf(report, "accepted=%d\n", ntohs(name.sin_port));
	must(write(listening + 1, "echo", 4) == 4 && read(listening + 2, echo, 4) == 4, "echo");
	fprintf(report, "connection=%s\n", echo);
}

static void report_all(int data, int sock, int listening)
{
	FILE *report = fopen("report.txt", "w");
	struct sockaddr_un name = { 0 };
	socklen_t length = sizeof(name);
	char link[64];

	must(report != NULL, "report.txt");
	snprintf(link, sizeof(link), "/proc/self/fd/%d", data);
	print_link(report, "exe", "/proc/self/exe");
	print_link(report, "cwd", "/proc/self/cwd");
	print_link(report, "data", link);
	must(getsockname(sock, (struct sockaddr *)&name, &length) == 0, "getsockname");
	fprintf(report, "socket=%s\n", name.sun_path);
	fprintf(report, "private=%.*s|%.*s\n", 16, PRIVATE + PAGE - 16, 16, PRIVATE + 2 * PAGE);
	fprintf(report, "shared=%.*s\n", 16, SHARED + 3 * PAGE + 100);
	if (listening >= 0)
		print_ports(report, listening);
	must(fclose(report) == 0, "report.txt");
}

int main(int argc, char **argv)
{
	int data = open("data.txt", O_RDWR | O_CREAT, 0644), gone = open("gone.txt", O_RDWR | O_CREAT, 0644);
	int sock, pipe_fds[2], pair[2], listening = -1, number, null = open("/dev/null", O_RDWR);
	pthread_t thread;
	sigset_t wanted;
	pid_t child;

	must(write(data, "data", 4) == 4 && write(gone, "contents of a removed file", 26) == 26, "write");
	must(unlink("gone.txt") == 0 && mkfifo("fifo", 0600) == 0 && open("fifo", O_RDWR) >= 0, "fifo");
	must(pipe(pipe_fds) == 0 && write(pipe_fds[1], "in the pipe", 11) == 11, "pipe");
	must(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0 && write(pair[0], "queued", 6) == 6, "socketpair");
	sock = bound_socket();
	if (argc > 1)
		listening = listener(atoi(argv[1]));
	map(PRIVATE, 3, MAP_PRIVATE);
	madvise(PRIVATE, 3 * PAGE, MADV_NOHUGEPAGE);
	memcpy(PRIVATE + PAGE - 16, "end of the first", 16);
	memcpy(PRIVATE + 2 * PAGE, "start of a third", 16);
	map(SHARED, 8, MAP_SHARED);
	memcpy(SHARED + 3 * PAGE + 100, "seen by both two", 16);

	sigemptyset(&wanted);
	sigaddset(&wanted, SIGUSR1);
	sigprocmask(SIG_BLOCK, &wanted, NULL);
	child = fork();
	if (child == 0)
		wait_for_ever(NULL);
	must(pthread_create(&thread, NULL, wait_for_ever, NULL) == 0, "thread");
	must(write(STDOUT_FILENO, "ready\n", 6) == 6 && dup2(null, STDOUT_FILENO) == STDOUT_FILENO, "stdout");
	sigwait(&wanted, &number);
	report_all(data, sock, listening);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	return 0;
}
