// System calls have aarch64's numbers and structures. Most go to the runtime's stub directly; those of which more must
// be done alike on all ISAs go by way of src/system_calls.c. Numbers are constants nearly everywhere, so this costs nothing.
#define __SYSCALL_LL_E(x) (x)
#define __SYSCALL_LL_O(x) (x)

long __unified_syscall(long, long, long, long, long, long, long);
long __unified_converted(long, long, long, long, long, long, long);

#define __unified_is_plain(n) \
	((n) != __NR_newfstatat && (n) != __NR_fstat && (n) != __NR_rt_sigaction && (n) != __NR_semctl && \
	 (n) != __NR_mmap && (n) != __NR_mremap && (n) != __NR_shmat)

static inline long __syscall6(long n, long a, long b, long c, long d, long e, long f)
{
	if (__builtin_constant_p(n) && __unified_is_plain(n))
		return __unified_syscall(n, a, b, c, d, e, f);
	return __unified_converted(n, a, b, c, d, e, f);
}
static inline long __syscall0(long n) { return __syscall6(n, 0, 0, 0, 0, 0, 0); }
static inline long __syscall1(long n, long a) { return __syscall6(n, a, 0, 0, 0, 0, 0); }
static inline long __syscall2(long n, long a, long b) { return __syscall6(n, a, b, 0, 0, 0, 0); }
static inline long __syscall3(long n, long a, long b, long c) { return __syscall6(n, a, b, c, 0, 0, 0); }
static inline long __syscall4(long n, long a, long b, long c, long d) { return __syscall6(n, a, b, c, d, 0, 0); }
static inline long __syscall5(long n, long a, long b, long c, long d, long e) { return __syscall6(n, a, b, c, d, e, 0); }

#define IPC_64 0
