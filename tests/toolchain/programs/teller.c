// A TCP server with a memory, of one connection after the other: teller ADDRESS PORT
// A request is a line with its number and the length of what follows it. The answer has the number, how many requests
// there were so far, and a sum over all that ever came. It waits some frames deep, with both on the stack of main.
#include <arpa/inet.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { DEPTH = 20 };

struct told {
	unsigned long requests;
	uint64_t sum;
};

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int take(FILE *in, struct told *told, unsigned long *number)
{
	unsigned long length;
	if (fscanf(in, "%lu %lu", number, &length) != 2 || fgetc(in) != '\n')
		return 0;
	for (; length; length--) {
		int byte = fgetc(in);
		if (byte == EOF)
			return 0;
		told->sum = told->sum * 31 + (uint64_t)byte;
	}
	told->requests++;
	return 1;
}

__attribute__((noinline)) static unsigned long serve(int depth, FILE *in, FILE *out, struct told *told)
{
	if (depth)
		return serve(depth - 1, in, out, told) + 1;
	unsigned long number;
	while (take(in, told, &number)) {
		fprintf(out, "%lu %lu %llu\n", number, told->requests, (unsigned long long)told->sum);
		fflush(out);
	}
	return 0;
}

static int listening(const char *address, int port)
{
	struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one))
		fail("socket");
	if (inet_pton(AF_INET, address, &here.sin_addr) != 1 || bind(fd, (struct sockaddr *)&here, sizeof here))
		fail(address);
	if (listen(fd, 8))
		fail("listen");
	return fd;
}

int main(int argc, char **argv)
{
	struct told told = {0, 0};
	if (argc != 3)
		return 2;
	signal(SIGPIPE, SIG_IGN);
	int fd = listening(argv[1], atoi(argv[2]));
	for (;;) {
		int peer = accept(fd, NULL, NULL);
		if (peer < 0)
			fail("accept");
		FILE *in = fdopen(peer, "r"), *out = fdopen(dup(peer), "w");
		if (!in || !out || serve(DEPTH, in, out, &told) != DEPTH)
			fail("serve");
		fclose(in);
		fclose(out);
	}
}
