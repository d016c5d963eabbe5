// Data in flight: sockets, pipes, and descriptors that count or tell of others.
#include "belongings.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

enum { FLIGHT = 3000, IN_PIPE = 5000, PIPE_SIZE = 16384, COUNTED = 42 };
static const unsigned long long mark = 0x1122334455667788;

static unsigned char pattern(unsigned at)
{
	return at * 7 + at / 256;
}

static int send_pattern(int fd, unsigned size)
{
	unsigned char data[IN_PIPE];
	for (unsigned at = 0; at < size; at++)
		data[at] = pattern(at);
	return write(fd, data, size) == size;
}

static int is_pattern(int fd, unsigned size)
{
	unsigned char data[IN_PIPE];
	for (unsigned have = 0, got; have < size; have += got) {
		got = read(fd, data + have, size - have);
		if ((int)got <= 0)
			return 0;
	}
	for (unsigned at = 0; at < size; at++)
		if (data[at] != pattern(at))
			return 0;
	return 1;
}

static int is_waiting(int fd)
{
	struct pollfd one = {fd, POLLIN, 0};
	return poll(&one, 1, 0) == 1;
}

static int stream[2], half[2], packets[2], datagrams[2];

static void fill_unix(void)
{
	if (!stream[0]) {
		MUST(!socketpair(AF_UNIX, SOCK_STREAM, 0, stream) && !socketpair(AF_UNIX, SOCK_STREAM, 0, half));
		MUST(!socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, packets));
		MUST(!socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, datagrams));
		MUST(send_pattern(half[0], 10) && !shutdown(half[0], SHUT_WR));
	}
	MUST(send_pattern(stream[0], FLIGHT) && send_pattern(stream[1], 10));
	for (int size = 1; size < 4; size++)
		MUST(send_pattern(packets[1], size * 10) && send_pattern(datagrams[0], size * 20));
}

static const char *look_unix(void)
{
	static int looked;
	int waiting;
	char data[100];
	WANT(!ioctl(stream[1], FIONREAD, &waiting) && waiting == FLIGHT);
	WANT(is_pattern(stream[1], FLIGHT) && is_pattern(stream[0], 10));
	WANT(!is_waiting(stream[0]) && !is_waiting(stream[1]));
	for (int size = 1; size < 4; size++)
		WANT(read(packets[0], data, sizeof data) == size * 10 && read(datagrams[1], data, sizeof data) == size * 20);
	WANT(read(datagrams[1], data, 1) == -1 && errno == EAGAIN);
	WANT(fcntl(packets[0], F_GETFD) == FD_CLOEXEC && !fcntl(datagrams[0], F_GETFD));
	WANT(looked++ || is_pattern(half[1], 10));
	WANT(!read(half[1], data, 1));
	WANT(send(half[0], data, 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
	return 0;
}

static int tube[2];

static void fill_pipe(void)
{
	if (!tube[0])
		MUST(!pipe2(tube, O_CLOEXEC) && fcntl(tube[1], F_SETPIPE_SZ, PIPE_SIZE) == PIPE_SIZE);
	MUST(!fcntl(tube[0], F_SETFL, O_NONBLOCK));
	MUST(send_pattern(tube[1], IN_PIPE));
}

static const char *look_pipe(void)
{
	WANT(fcntl(tube[0], F_GETFL) == O_NONBLOCK && fcntl(tube[1], F_GETFL) == O_WRONLY);
	WANT(fcntl(tube[0], F_GETFD) == FD_CLOEXEC && fcntl(tube[1], F_GETPIPE_SZ) == PIPE_SIZE);
	WANT(is_pattern(tube[0], IN_PIPE));
	WANT(read(tube[0], &(char){0}, 1) == -1 && errno == EAGAIN);
	return 0;
}

static int listening, accepted, connected, udp[2];

static void open_tcp(void)
{
	struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof here;
	MUST((listening = socket(AF_INET, SOCK_STREAM, 0)) >= 0 && !bind(listening, (void *)&here, size));
	MUST(!listen(listening, 5) && !getsockname(listening, (void *)&here, &size));
	MUST((connected = socket(AF_INET, SOCK_STREAM, 0)) >= 0 && !connect(connected, (void *)&here, size));
	MUST((accepted = accept(listening, 0, 0)) >= 0);
	MUST(!setsockopt(connected, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int)));
	MUST(!setsockopt(accepted, SOL_SOCKET, SO_KEEPALIVE, &(int){1}, sizeof(int)));
}

static void open_udp(void)
{
	struct sockaddr_in here[2];
	socklen_t size = sizeof *here;
	for (int end = 0; end < 2; end++) {
		here[end] = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
		MUST((udp[end] = socket(AF_INET, SOCK_DGRAM, 0)) >= 0 && !bind(udp[end], (void *)&here[end], size));
		MUST(!getsockname(udp[end], (void *)&here[end], &size));
	}
	for (int end = 0; end < 2; end++)
		MUST(!connect(udp[end], (void *)&here[!end], size));
}

static void fill_inet(void)
{
	if (!listening) {
		open_tcp();
		open_udp();
	}
	MUST(send_pattern(connected, FLIGHT) && send_pattern(accepted, 10));
}

static int has_option(int fd, int level, int option)
{
	int value = 0;
	return !getsockopt(fd, level, option, &value, &(socklen_t){sizeof value}) && value;
}

static const char *look_inet(void)
{
	char data[100];
	WANT(is_pattern(accepted, FLIGHT) && is_pattern(connected, 10));
	WANT(send_pattern(accepted, 100) && is_pattern(connected, 100));
	WANT(has_option(connected, IPPROTO_TCP, TCP_NODELAY) && !has_option(accepted, IPPROTO_TCP, TCP_NODELAY));
	WANT(has_option(accepted, SOL_SOCKET, SO_KEEPALIVE) && !has_option(connected, SOL_SOCKET, SO_KEEPALIVE));
	WANT(has_option(listening, SOL_SOCKET, SO_ACCEPTCONN));
	WANT(send_pattern(udp[0], 30) && read(udp[1], data, sizeof data) == 30);
	WANT(send_pattern(udp[1], 40) && read(udp[0], data, sizeof data) == 40);
	return 0;
}

static int counter, ready, watch, idle[2];

static void fill_event(void)
{
	if (!watch) {
		MUST((counter = eventfd(0, 0)) >= 0 && (ready = eventfd(0, EFD_NONBLOCK)) >= 0);
		MUST((watch = epoll_create1(EPOLL_CLOEXEC)) >= 0 && !pipe(idle));
		struct epoll_event event = {.events = EPOLLIN, .data.u64 = mark};
		MUST(!epoll_ctl(watch, EPOLL_CTL_ADD, counter, &event));
		event = (struct epoll_event){.events = EPOLLIN | EPOLLET, .data.u64 = ~mark};
		MUST(!epoll_ctl(watch, EPOLL_CTL_ADD, idle[0], &event));
	}
	MUST(!eventfd_write(counter, COUNTED) && !eventfd_write(ready, 2));
}

static const char *look_event(void)
{
	struct epoll_event events[4];
	eventfd_t value;
	WANT(epoll_wait(watch, events, 4, 0) == 1 && events[0].events == EPOLLIN && events[0].data.u64 == mark);
	WANT(!eventfd_read(counter, &value) && value == COUNTED);
	WANT(!eventfd_read(ready, &value) && value == 2 && eventfd_read(ready, &value) == -1 && errno == EAGAIN);
	WANT(!epoll_wait(watch, events, 4, 0));
	WANT(write(idle[1], "!", 1) == 1);
	WANT(epoll_wait(watch, events, 4, 1000) == 1 && events[0].events == EPOLLIN && events[0].data.u64 == ~mark);
	WANT(!epoll_wait(watch, events, 4, 0) && read(idle[0], &value, 1) == 1); // edge-triggered: told once
	return 0;
}

const struct thing channels[] = {
	{"UNIX sockets", fill_unix, look_unix},
	{"pipe", fill_pipe, look_pipe},
	{"TCP and UDP", fill_inet, look_inet},
	{"eventfd and epoll", fill_event, look_event},
	{0},
};
