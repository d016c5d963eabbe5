// Counts its arguments in a thread, and says what cmake has found out about the system.
#include "config.h"
#include "count.h"
#include <pthread.h>
#include <stdio.h>

struct work {
	int count, found;
	char **words;
};

static void *count(void *argument)
{
	struct work *work = argument;
	work->found = different(work->count, work->words);
	return NULL;
}

int main(int argc, char **argv)
{
	struct work work = {argc - 1, 0, argv + 1};
	pthread_t thread;
	if (pthread_create(&thread, NULL, count, &work) || pthread_join(thread, NULL))
		return 1;
	printf("words %s: %d, %d different\n", VERSION, work.count, work.found);
#if defined(HAVE_THREADS_H) && defined(HAVE_STRLCPY) && !defined(HAVE_NO_SUCH_FUNCTION)
	printf("long double: %d bytes\n", SIZEOF_LONG_DOUBLE);
#endif
	return 0;
}
