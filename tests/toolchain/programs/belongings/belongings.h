// What a process holds beside its memory: for each kind one `fill`, which makes it hold some, and one `look`, which
// sees whether all of that is there still, and uses it up. What is wrong is said as the condition that does not hold.
#ifndef BELONGINGS_H
#define BELONGINGS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct thing {
	const char *name;
	void (*fill)(void);
	const char *(*look)(void);
};

// Each ends with a name of 0.
extern const struct thing channels[], files[], processes[], timers[], waits[];

#define TEXT(number) #number
#define LINE(number) TEXT(number)
#define WANT(condition)                                                                                                \
	do {                                                                                                           \
		if (!(condition))                                                                                      \
			return __FILE_NAME__ ":" LINE(__LINE__) ": " #condition;                                       \
	} while (0)
#define MUST(condition)                                                                                                \
	do {                                                                                                           \
		if (!(condition)) {                                                                                    \
			perror(__FILE_NAME__ ":" LINE(__LINE__) ": " #condition);                                      \
			exit(1);                                                                                       \
		}                                                                                                      \
	} while (0)

#define WITHIN(seconds, most) ((seconds) > (most) - 5000 && (seconds) <= (most)) // a test takes less

#endif
