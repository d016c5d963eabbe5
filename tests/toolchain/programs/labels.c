// A little machine that jumps by labels as values, some of which it keeps across calls; and bytes that are no text.
#include <stdio.h>
#include <string.h>

static int steps;

static void *kept(void *label)
{
	steps++;
	return label;
}

static long run(const unsigned char *code, long value)
{
	static void *const operations[] = {&&add, &&twice, &&end};
	void *next = operations[*code];
again:
	goto *kept(next);
add:
	value++;
	next = operations[*++code];
	goto *next;
twice:
	value *= 2;
	next = operations[*++code];
	goto again;
end:
	return value;
}

int main(void)
{
	static const char bytes[] = "\xff\xfe\xc3(\x80";
	long value = run((const unsigned char *)"\1\0\0\1\1\2", 5);
	printf("%ld %d %zu %d\n", value, steps, strlen(bytes), (signed char)bytes[4]);
	return 0;
}
