// Open files: offsets, flags whose numbers differ by ISA, mappings, files without a name.
#include "belongings.h"

#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>

enum { SIZE = 10000, OFFSET = 1234, PAGE = 4096 };

static int reading, sharing, appending, direct, place, nofollow, bare, nameless, memory, null;
static char *shared, *own, *closed;

static void make(const char *name)
{
	char data[SIZE];
	int fd;
	for (int at = 0; at < SIZE; at++)
		data[at] = at;
	MUST((fd = open(name, O_CREAT | O_TRUNC | O_WRONLY, 0640)) >= 0 && write(fd, data, SIZE) == SIZE && !close(fd));
}

static void map(void)
{
	int fd = open("mapped", O_RDWR);
	MUST(fd >= 0);
	MUST((shared = mmap(0, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) != MAP_FAILED);
	MUST((own = mmap(0, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0)) != MAP_FAILED);
	MUST((closed = mmap(0, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) != MAP_FAILED);
	close(fd);
	own[PAGE] = 'p';
}

static void open_files(void)
{
	make("data");
	make("mapped");
	make("log");
	MUST((reading = open("data", O_RDWR | O_NOATIME)) >= 0 && (sharing = dup(reading)) >= 0);
	MUST((appending = open("log", O_WRONLY | O_APPEND | O_DSYNC)) >= 0);
	MUST((direct = open("data", O_RDONLY | O_DIRECT | O_CLOEXEC)) >= 0);
	MUST((place = open(".", O_RDONLY | O_DIRECTORY)) >= 0);
	MUST((nofollow = open("data", O_RDONLY | O_NOFOLLOW)) >= 0 && (bare = open("data", O_PATH)) >= 0);
	MUST((nameless = open("unlinked", O_CREAT | O_RDWR, 0600)) >= 0 && !unlink("unlinked"));
	MUST((memory = memfd_create("notes", MFD_ALLOW_SEALING)) >= 0 && (null = open("/dev/null", O_WRONLY)) >= 0);
	MUST(write(nameless, "ghost", 5) == 5 && write(memory, "notes", 5) == 5);
	MUST(!fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK) && !flock(reading, LOCK_EX));
	map();
}

static void fill_files(void)
{
	if (!reading)
		open_files();
	MUST(lseek(reading, OFFSET, SEEK_SET) == OFFSET);
}

// O_DIRECTORY is not looked at: CRIU opens folders without it. That it became O_DIRECT would be seen.
static const char *differ(int fd, int wanted, const char *name)
{
	static char text[100];
	int flags = fcntl(fd, F_GETFL) & ~(O_LARGEFILE | O_DIRECTORY);
	snprintf(text, sizeof text, "%s: flags %#o, not %#o", name, flags, wanted);
	return flags == wanted ? 0 : text;
}

static const char *look_flags(void)
{
	const struct {
		int fd, flags;
		const char *name;
	} all[] = {
		{reading, O_RDWR | O_NOATIME, "O_NOATIME"},
		{appending, O_WRONLY | O_APPEND | O_DSYNC, "O_APPEND"},
		{direct, O_RDONLY | O_DIRECT, "O_DIRECT"},
		{place, O_RDONLY, "O_DIRECTORY"},
		{nofollow, O_RDONLY | O_NOFOLLOW, "O_NOFOLLOW"},
		{bare, O_PATH, "O_PATH"},
	};
	for (unsigned each = 0; each < sizeof all / sizeof *all; each++) {
		const char *wrong = differ(all[each].fd, all[each].flags, all[each].name);
		if (wrong)
			return wrong;
	}
	WANT(fcntl(direct, F_GETFD) == FD_CLOEXEC && !fcntl(nofollow, F_GETFD));
	WANT(read(bare, &(char){0}, 1) == -1 && errno == EBADF);
	return 0;
}

static const char *look_places(void)
{
	char byte;
	struct stat status;
	WANT(lseek(sharing, 0, SEEK_CUR) == OFFSET && read(reading, &byte, 1) == 1 && byte == (char)OFFSET);
	WANT(lseek(sharing, 0, SEEK_CUR) == OFFSET + 1);
	WANT(write(appending, "+", 1) == 1 && lseek(appending, 0, SEEK_CUR) == lseek(appending, 0, SEEK_END));
	WANT(!fstatat(place, "data", &status, 0) && status.st_size == SIZE);
	WANT(!fstat(nameless, &status) && status.st_nlink == 0 && pread(nameless, &byte, 1, 4) == 1 && byte == 't');
	WANT(lseek(nameless, 0, SEEK_CUR) == 5 && lseek(memory, 0, SEEK_CUR) == 5);
	WANT(pread(memory, &byte, 1, 0) == 1 && byte == 'n' && fcntl(memory, F_GET_SEALS) == F_SEAL_SHRINK);
	WANT(write(null, &byte, 1) == 1);
	return 0;
}

static const char *look_locks(void)
{
	int other = open("data", O_RDWR);
	WANT(flock(other, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK);
	WANT(!close(other));
	return 0;
}

static const char *look_maps(void)
{
	char byte;
	int fd = open("mapped", O_RDONLY);
	shared[3]++;
	WANT(fd >= 0 && pread(fd, &byte, 1, 3) == 1 && byte == shared[3] && !close(fd));
	WANT(own[PAGE] == 'p' && shared[PAGE] == (char)PAGE && own[PAGE + 1] == (char)(PAGE + 1));
	WANT(write(nameless, closed, 1) == -1 && errno == EFAULT);
	return 0;
}

const struct thing files[] = {
	{"places in files", fill_files, look_places},
	{"flags of files", fill_files, look_flags},
	{"locks of files", fill_files, look_locks},
	{"maps of files", fill_files, look_maps},
	{0},
};
