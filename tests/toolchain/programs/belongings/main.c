// All that CRIU carries beside memory, each kind of it a few times: after a move it must be as it was.
//     belongings LOOKS
// Works in its directory. Whenever there is a file `look-N` (N from 1 on) it looks at everything, and writes to
// `report-N` a line for each kind. Ends after LOOKS of them.
#include "belongings.h"

#include <time.h>

static const struct thing *const things[] = {channels, files, processes, timers, waits};
enum { KINDS = sizeof things / sizeof *things };

static void wait_for(const char *name)
{
	while (access(name, F_OK))
		nanosleep(&(struct timespec){0, 100000000}, 0);
}

static void report(int number)
{
	char name[40], whole[40];
	snprintf(name, sizeof name, "report-%d.new", number);
	snprintf(whole, sizeof whole, "report-%d", number);
	FILE *file = fopen(name, "w");
	MUST(file);
	for (int kind = 0; kind < KINDS; kind++)
		for (const struct thing *one = things[kind]; one->name; one++) {
			errno = 0;
			const char *wrong = one->look();
			fprintf(file, "%s: %s", one->name, wrong ? wrong : "as it was");
			fprintf(file, wrong && errno ? " (%s)\n" : "\n", strerror(errno));
		}
	MUST(!fclose(file) && !rename(name, whole));
}

int main(int count, char **words)
{
	int looks = count > 1 ? atoi(words[1]) : 1;
	for (int number = 1; number <= looks; number++) {
		char name[40];
		for (int kind = 0; kind < KINDS; kind++)
			for (const struct thing *one = things[kind]; one->name; one++)
				one->fill();
		snprintf(name, sizeof name, "ready-%d", number);
		MUST(!close(open(name, O_CREAT | O_WRONLY, 0600)));
		snprintf(name, sizeof name, "look-%d", number);
		wait_for(name);
		report(number);
	}
	return 0;
}
