// What is done for some system calls, alike on all ISAs, before they get to the runtime's stub.
#define _GNU_SOURCE
#include "syscall.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include "ksigaction.h"
#include "kstat.h"

// x86-64 cannot map what lies above; aarch64's kernel would choose it.
#define LIMIT (1UL << 47)
// Where maps without a wish go, downwards: below the program's stack (crt.c), above what x86-64's kernel gives a program.
#define MAPS_BEGIN 0x7d0000000000UL
#define MAPS_END 0x100000000000UL
#define TRIES 64

long __unified_map(long length, long protection, long flags, long fd, long offset)
{
	static uintptr_t next = MAPS_BEGIN;
	uintptr_t bytes = (length + 4095UL) & -4096UL;
	if (bytes > MAPS_BEGIN - MAPS_END)
		return -ENOMEM;
	for (int i = 0; i < TRIES; i++) {
		uintptr_t place = __atomic_sub_fetch(&next, bytes, __ATOMIC_RELAXED);
		if (place < MAPS_END || place > MAPS_BEGIN) {
			__atomic_store_n(&next, MAPS_BEGIN, __ATOMIC_RELAXED);
			continue;
		}
		long got = __unified_syscall(SYS_mmap, place, length, protection, flags, fd, offset);
		if (got < 0 ? got > -4096L : (unsigned long)got < LIMIT)
			return got;
		__unified_syscall(SYS_munmap, got, length, 0, 0, 0, 0);
	}
	return -ENOMEM;
}

static long reserve(long length)
{
	return __unified_map(length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

static long remap(long old, long old_length, long length, long flags, long place)
{
	long got = __unified_syscall(SYS_mremap, old, old_length, length, flags & ~MREMAP_MAYMOVE, place, 0);
	if (got != -ENOMEM)
		return got;
	place = reserve(length);
	if (place < 0 && place > -4096L)
		return place;
	got = __unified_syscall(SYS_mremap, old, old_length, length, flags | MREMAP_FIXED, place, 0);
	if (got < 0 && got > -4096L)
		__unified_syscall(SYS_munmap, place, length, 0, 0, 0, 0);
	return got;
}

static long attach(long id, long flags)
{
	struct shmid_ds about;
	long got = __unified_syscall(SYS_shmctl, id, IPC_STAT, (long)&about, 0, 0, 0);
	if (got < 0)
		return got;
	long place = reserve(about.shm_segsz);
	if (place < 0 && place > -4096L)
		return place;
	got = __unified_syscall(SYS_shmat, id, place, flags | SHM_REMAP, 0, 0, 0);
	if (got < 0 && got > -4096L)
		__unified_syscall(SYS_munmap, place, about.shm_segsz, 0, 0, 0, 0);
	return got;
}

struct statx_time {
	int64_t seconds;
	uint32_t nanoseconds;
	int32_t pad;
};

// linux/stat.h: the same on all ISAs.
struct statx_all {
	uint32_t mask, blksize;
	uint64_t attributes;
	uint32_t nlink, uid, gid;
	uint16_t mode, pad;
	uint64_t ino, size, blocks, attributes_mask;
	struct statx_time atime, btime, ctime, mtime;
	uint32_t rdev_major, rdev_minor, dev_major, dev_minor;
	uint64_t spare[14];
};

static long status(long fd, const char *path, struct kstat *result, long flags)
{
	struct statx_all x;
	long got = __unified_syscall(SYS_statx, fd, (long)path, flags | AT_NO_AUTOMOUNT, 0x7ff, (long)&x, 0);
	if (got)
		return got;
	*result = (struct kstat){
		.st_dev = makedev(x.dev_major, x.dev_minor),
		.st_ino = x.ino,
		.st_mode = x.mode,
		.st_nlink = x.nlink,
		.st_uid = x.uid,
		.st_gid = x.gid,
		.st_rdev = makedev(x.rdev_major, x.rdev_minor),
		.st_size = x.size,
		.st_blksize = x.blksize,
		.st_blocks = x.blocks,
		.st_atime_sec = x.atime.seconds,
		.st_atime_nsec = x.atime.nanoseconds,
		.st_mtime_sec = x.mtime.seconds,
		.st_mtime_nsec = x.mtime.nanoseconds,
		.st_ctime_sec = x.ctime.seconds,
		.st_ctime_nsec = x.ctime.nanoseconds,
	};
	return 0;
}

long __unified_action(long, const struct k_sigaction *, struct k_sigaction *, long);

// struct semid_ds differs.
static long semaphores(long id, long number, long command, long argument)
{
	switch (command & ~0x100) {
	case IPC_STAT:
	case IPC_SET:
	case 18: // SEM_STAT
	case 20: // SEM_STAT_ANY
		return -ENOSYS;
	}
	return __unified_syscall(SYS_semctl, id, number, command, argument, 0, 0);
}

long __unified_converted(long n, long a, long b, long c, long d, long e, long f)
{
	switch (n) {
	case SYS_newfstatat:
		return status(a, (const char *)b, (struct kstat *)c, d);
	case SYS_fstat:
		return status(a, "", (struct kstat *)b, AT_EMPTY_PATH);
	case SYS_rt_sigaction:
		return __unified_action(a, (const struct k_sigaction *)b, (struct k_sigaction *)c, d);
	case SYS_semctl:
		return semaphores(a, b, c, d);
	case SYS_mmap:
		if (!a && !(d & MAP_FIXED))
			return __unified_map(b, c, d, e, f);
		break;
	case SYS_mremap:
		if ((d & MREMAP_MAYMOVE) && !(d & MREMAP_FIXED))
			return remap(a, b, c, d, e);
		break;
	case SYS_shmat:
		if (!b)
			return attach(a, c);
		break;
	}
	return __unified_syscall(n, a, b, c, d, e, f);
}
