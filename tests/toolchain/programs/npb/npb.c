// Which kernel, which class.
#include "npb.h"
#include <string.h>

static const struct { const char *name; int (*run)(int class); } kernels[] = {
	{"ep", ep}, {"is", is}, {"cg", cg}, {"mg", mg}, {"ft", ft},
};

int main(int argc, char **argv)
{
	const char *class = argc == 3 && strlen(argv[2]) == 1 ? strchr(CLASSES, argv[2][0]) : NULL;
	for (size_t i = 0; class && i < sizeof kernels / sizeof *kernels; i++)
		if (!strcmp(argv[1], kernels[i].name))
			return kernels[i].run(class - CLASSES);
	fprintf(stderr, "usage: %s ep|is|cg|mg|ft S|W\n", argv[0]);
	return 2;
}
