// Signals. The kernel calls a trampoline of the runtime, which is at the same address on all ISAs, and calls
// `__unified_deliver`, with our convention; handlers are known here. Who asks for a ucontext gets aarch64's, in which
// only what all ISAs have is filled in: program counter, stack and frame pointer, result, fault address and mask. Program
// counter, stack pointer and mask may be changed there.
#define _GNU_SOURCE
#include "syscall.h"
#include <signal.h>
#include <string.h>
#include <ucontext.h>
#include "ksigaction.h"

#define SIGNALS 65

typedef void (*plain)(int);
typedef void (*informed)(int, siginfo_t *, void *);

// What x86-64's kernel puts on the stack.
struct x86_context {
	unsigned long flags;
	void *link;
	stack_t stack;
	unsigned long r8, r9, r10, r11, r12, r13, r14, r15, di, si, bp, bx, dx, ax, cx, sp, ip, eflags, segments, error, trap;
	unsigned long old_mask, cr2, fpstate, reserved[8], mask;
};

static plain handlers[SIGNALS];
static char wants_context[SIGNALS];

void __unified_handler(int);
int __unified_is_x86(void);

long __unified_action(long number, const struct k_sigaction *new, struct k_sigaction *old, long size)
{
	if (number < 1 || number >= SIGNALS)
		return __unified_syscall(SYS_rt_sigaction, number, (long)new, (long)old, size, 0, 0);
	plain before = handlers[number];
	char wanted = wants_context[number];
	struct k_sigaction action;
	if (new && (unsigned long)new->handler > 1) {
		action = *new;
		handlers[number] = new->handler;
		wants_context[number] = !!(new->flags & SA_SIGINFO);
		action.handler = __unified_handler;
		new = &action;
	}
	long result = __unified_syscall(SYS_rt_sigaction, number, (long)new, (long)old, size, 0, 0);
	if (result && new == &action) {
		handlers[number] = before;
		wants_context[number] = wanted;
	}
	if (!result && old && old->handler == __unified_handler)
		old->handler = before;
	return result;
}

static void with_context(informed handler, int number, siginfo_t *info, struct x86_context *from)
{
	ucontext_t context;
	memset(&context, 0, sizeof context);
	context.uc_stack = from->stack;
	memcpy(&context.uc_sigmask, &from->mask, sizeof from->mask);
	context.uc_mcontext.fault_address = from->cr2;
	context.uc_mcontext.regs[0] = from->ax;
	context.uc_mcontext.regs[1] = from->dx;
	context.uc_mcontext.regs[29] = from->bp;
	context.uc_mcontext.sp = from->sp;
	context.uc_mcontext.pc = from->ip;
	handler(number, info, &context);
	memcpy(&from->mask, &context.uc_sigmask, sizeof from->mask);
	from->sp = context.uc_mcontext.sp;
	from->ip = context.uc_mcontext.pc;
}

void __unified_deliver(int number, siginfo_t *info, void *context)
{
	informed handler = (informed)handlers[number];
	if (wants_context[number] && __unified_is_x86())
		with_context(handler, number, info, context);
	else
		handler(number, info, context);
}
