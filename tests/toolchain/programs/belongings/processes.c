// Other processes: one that answers and shares memory, one that has ended, one that is stopped; and what a process is.
#include "belongings.h"

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { CODE = 7, PAGES = 8, PAGE = 4096, DESCRIPTORS = 777, NICE = 3 };

static int questions[2], answers[2];
static volatile unsigned *common;

static void answer(void)
{
	unsigned number;
	MUST(!close(questions[1]) && !prctl(PR_SET_PDEATHSIG, SIGKILL));
	while (read(questions[0], &number, sizeof number) == sizeof number) {
		common[number] = number * 5;
		number++;
		MUST(write(answers[1], &number, sizeof number) == sizeof number);
	}
	exit(0);
}

static void fill_child(void)
{
	if (!common) {
		MUST(!pipe(questions) && !pipe(answers));
		common = mmap(0, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		MUST(common != MAP_FAILED);
		if (!fork())
			answer();
	}
	for (unsigned word = 0; word < PAGES * PAGE / 4; word++)
		common[word] = word;
}

static const char *look_child(void)
{
	for (unsigned word = 0, number; word < PAGES * PAGE / 4; word += PAGE) {
		WANT(common[word] == word && common[word + 1] == word + 1);
		WANT(write(questions[1], &word, sizeof word) == sizeof word);
		WANT(read(answers[0], &number, sizeof number) == sizeof number && number == word + 1);
		WANT(common[word] == word * 5);
	}
	return 0;
}

static pid_t ended, stopped;

static void fill_ended(void)
{
	siginfo_t info;
	if (!(ended = fork()))
		_exit(CODE);
	MUST(!waitid(P_PID, ended, &info, WEXITED | WNOWAIT));
	if (!(stopped = fork())) {
		raise(SIGSTOP);
		_exit(CODE + 1);
	}
	MUST(!waitid(P_PID, stopped, &info, WSTOPPED | WNOWAIT));
}

static const char *look_ended(void)
{
	char path[40], state = 0;
	int status;
	WANT(waitpid(ended, &status, 0) == ended && WIFEXITED(status) && WEXITSTATUS(status) == CODE);
	snprintf(path, sizeof path, "/proc/%d/stat", stopped);
	FILE *file = fopen(path, "r");
	WANT(file && fscanf(file, "%*d %*s %c", &state) == 1 && !fclose(file) && state == 'T');
	WANT(!kill(stopped, SIGCONT));
	WANT(waitpid(stopped, &status, 0) == stopped && WIFEXITED(status) && WEXITSTATUS(status) == CODE + 1);
	return 0;
}

static char *place;

static void fill_itself(void)
{
	struct rlimit limit = {DESCRIPTORS, DESCRIPTORS};
	MUST(!setrlimit(RLIMIT_NOFILE, &limit) && !setpriority(PRIO_PROCESS, 0, NICE) && !prctl(PR_SET_NAME, "belongs"));
	umask(027);
	if (!place)
		MUST((place = getcwd(0, 0)));
}

static const char *look_itself(void)
{
	char name[16], path[1000];
	struct rlimit limit;
	WANT(!getrlimit(RLIMIT_NOFILE, &limit) && limit.rlim_cur == DESCRIPTORS && limit.rlim_max == DESCRIPTORS);
	WANT(getpriority(PRIO_PROCESS, 0) == NICE && !prctl(PR_GET_NAME, name) && !strcmp(name, "belongs"));
	WANT(umask(027) == 027 && getcwd(path, sizeof path) && !strcmp(place, path));
	return 0;
}

const struct thing processes[] = {
	{"a child that answers", fill_child, look_child},
	{"children that ended and stopped", fill_ended, look_ended},
	{"the process itself", fill_itself, look_itself},
	{0},
};
