// How many of some words are different.
#include "count.h"
#include <string.h>

int different(int count, char **words)
{
	int found = 0;
	for (int i = 0; i < count; i++) {
		int k = 0;
		while (k < i && strcmp(words[k], words[i]))
			k++;
		found += k == i;
	}
	return found;
}
