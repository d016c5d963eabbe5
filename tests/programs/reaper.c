/* Starts a program as a test needs it for CRIU, and buries it.
 *
 *   reaper COMMAND ARGUMENT...
 *
 * The command runs in a session of its own, its descriptors on /dev/null; its pid is printed on stdout. The reaper then waits for it
 * and for whatever it leaves behind, so that a process killed after a dump is not a zombie that occupies the pid which the
 * restore on the same machine wants. It ends when all of them are gone. When its stdin reaches end of file (the test is
 * over, or died) it kills the command's process group.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

static void die(const char *what)
{
	perror(what);
	exit(111);
}

static void become(char **command)
{
	sigset_t none;
	int null = open("/dev/null", O_RDWR);

	if (null < 0 || setsid() < 0)
		die("reaper");
	for (int fd = 0; fd < 3; fd++)
		if (dup2(null, fd) < 0)
			die("reaper: dup2");
	close_range(3, ~0U, 0);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	execv(command[0], command);
	_exit(127);
}

/* True while there are children. */
static int bury(void)
{
	pid_t gone;

	while ((gone = waitpid(-1, NULL, WNOHANG)) > 0)
		;
	return gone == 0 || errno != ECHILD;
}

int main(int argc, char **argv)
{
	struct pollfd waits[2] = { { .fd = STDIN_FILENO, .events = POLLIN } };
	struct signalfd_siginfo ignored;
	sigset_t child_died;
	pid_t child;

	if (argc < 2)
		return 2;
	sigemptyset(&child_died);
	sigaddset(&child_died, SIGCHLD);
	if (sigprocmask(SIG_BLOCK, &child_died, NULL) || prctl(PR_SET_CHILD_SUBREAPER, 1))
		die("reaper");
	waits[1] = (struct pollfd){ .fd = signalfd(-1, &child_died, SFD_CLOEXEC), .events = POLLIN };
	child = fork();
	if (waits[1].fd < 0 || child < 0)
		die("reaper");
	if (child == 0)
		become(argv + 1);
	printf("%d\n", child);
	fclose(stdout);
	while (bury()) {
		if (poll(waits, 2, -1) < 0)
			die("reaper: poll");
		if (waits[1].revents && read(waits[1].fd, &ignored, sizeof(ignored)) < 0)
			die("reaper: signalfd");
		if (waits[0].revents) {
			kill(-child, SIGKILL);
			waits[0].fd = -1;
		}
	}
	return 0;
}
