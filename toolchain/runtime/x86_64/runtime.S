// Arguments come in r12, r13, r14, r15, rdi, rsi, rdx, rcx (preserve_none); no register but rbp and rsp need survive.

// A record of the table of sites (transform/sites.py) for the instruction that follows. `again`: where the system call
// can be made again. Frame ~0 says that the runtime has none.
.macro SITE number, kind, again=0
8:	.pushsection .unified.sites,"",@progbits
	.quad 8b, \again
	.long \number, ~0, \kind, 0
	.popsection
.endm

.macro BEGIN name
	.section .text.\name,"ax",@progbits
	.globl \name
	.type \name,@function
\name:
.endm

// O_DIRECTORY and O_NOFOLLOW, O_DIRECT and O_LARGEFILE change places; either way.
.macro SWAP_FLAGS register
	movl \register,%ecx
	movl \register,%r11d
	shll $2,%ecx
	shrl $2,%r11d
	andl $0x30000,%ecx
	andl $0xc000,%r11d
	andl $~0x3c000,\register
	orl %ecx,\register
	orl %r11d,\register
.endm

// A system call with aarch64's number and structures: r12 to r15 and what they mean stay, the kernel's registers are
// filled. Calls that end at once, and are converted, have an instruction of their own, which is no site.
.macro SYSTEM_CALL plain, wait
92:
	cmpq $unified_numbers_count,%r12
	jae 91f
	movswq unified_numbers(,%r12,2),%rax
	testq %rax,%rax
	js 91f
	movq %rdi,%r10
	movq %rsi,%r8
	movq %rdx,%r9
	movq %r13,%rdi
	movq %r14,%rsi
	movq %r15,%rdx
	cmpq $59,%r12
	ja 10f
	cmpq $56,%r12 // openat
	je 11f
	cmpq $59,%r12 // pipe2
	je 12f
	cmpq $25,%r12 // fcntl
	je 13f
	cmpq $21,%r12 // epoll_ctl
	je 15f
	cmpq $22,%r12 // epoll_pwait
	je 16f
	jmp 1f
10:	cmpq $265,%r12 // open_by_handle_at
	je 11f
	cmpq $220,%r12 // clone: the last two arguments change places
	je 14f
	cmpq $441,%r12 // epoll_pwait2
	jne 1f
16:	SITE \wait, 4, 92b
	syscall
	jmp 17f
12:	SWAP_FLAGS %esi
	jmp 1f
13:	cmpl $3,%esi // F_GETFL
	je 18f
	cmpl $4,%esi // F_SETFL
	jne 1f
11:	SWAP_FLAGS %edx
1:	SITE \plain, 3, 92b
	syscall
.endm

// The rest of it, in which no call waits.
.macro SYSTEM_CALL_END
90:	ret
91:	movq $-38,%rax // ENOSYS
	ret
14:	xchgq %r10,%r8
	syscall
	ret
15:	testq %r10,%r10
	jz 2f
	movl (%r10),%ecx // struct epoll_event is packed here
	movq 8(%r10),%r11
	movl %ecx,-16(%rsp)
	movq %r11,-12(%rsp)
	leaq -16(%rsp),%r10
2:	syscall
	ret
17:	movslq %eax,%rdx // as many, from the last to the first
3:	decq %rdx
	js 90b
	leaq (%rdx,%rdx,2),%rsi
	leaq (%r14,%rsi,4),%rsi
	movq %rdx,%rdi
	shlq $4,%rdi
	movl (%rsi),%ecx
	movq 4(%rsi),%r11
	movl %ecx,(%r14,%rdi)
	movq %r11,8(%r14,%rdi)
	jmp 3b
18:	syscall
	testl %eax,%eax
	js 90b
	SWAP_FLAGS %eax
	ret
.endm

BEGIN _start
	xorl %ebp,%ebp
	movq %rsp,%r12
	andq $-16,%rsp
	call _start_c
	SITE 0x80000010, 1
	hlt
.size _start,.-_start

// The program begins on another stack, which has its arguments.
BEGIN __unified_enter
	movq %r12,%rsp
	xorl %ebp,%ebp
	andq $-16,%rsp
	call __unified_main
	SITE 0x80000011, 1
	hlt
.size __unified_enter,.-__unified_enter

BEGIN __unified_is_x86
	movl $1,%eax
	ret
.size __unified_is_x86,.-__unified_is_x86

BEGIN __unified_syscall
	SYSTEM_CALL 0x80000000, 0x80000001
	SYSTEM_CALL_END
.size __unified_syscall,.-__unified_syscall

// __syscall_cp_asm(&self->cancel, number, six arguments)
BEGIN __syscall_cp_asm
.globl __cp_begin, __cp_end, __cp_cancel
__cp_begin:
	cmpl $0,(%r12)
	jne __cp_cancel
	movq %r13,%r12
	movq %r14,%r13
	movq %r15,%r14
	movq %rdi,%r15
	movq %rsi,%rdi
	movq %rdx,%rsi
	movq %rcx,%rdx
	SYSTEM_CALL 0x80000002, 0x80000003
__cp_end:
	SYSTEM_CALL_END
__cp_cancel:
	jmp __cancel
.size __syscall_cp_asm,.-__syscall_cp_asm

BEGIN __set_thread_area
	movq %r12,(%r12) // where the compiler looks for the thread pointer
	movq %r12,%rsi
	movl $0x1002,%edi // ARCH_SET_FS
	movl $158,%eax
	syscall
	ret
.size __set_thread_area,.-__set_thread_area

// Where the kernel calls every handler: in C's convention, the number, the siginfo and the context.
BEGIN __unified_handler
	subq $8,%rsp
	movslq %edi,%r12
	movq %rsi,%r13
	movq %rdx,%r14
	call __unified_deliver
	addq $8,%rsp
	ret
.size __unified_handler,.-__unified_handler

.section .text.__restore_rt,"ax",@progbits
.globl __restore, __restore_rt
__restore:
__restore_rt:
	movl $15,%eax
	syscall

// __clone(function, stack, flags, argument, ...): ptid, tls and ctid are in a buffer, as variable arguments are
BEGIN __clone
	movq %rdi,%rcx
	movq (%rcx),%rdx
	movq 16(%rcx),%r10
	movq 8(%rcx),%r8
	btl $19,%r14d // CLONE_SETTLS
	jnc 1f
	movq %r8,(%r8) // where the compiler looks for the thread pointer
1:	andq $-16,%r13
	movq %r14,%rdi
	movq %r13,%rsi
	movl $56,%eax
	syscall
	testl %eax,%eax
	jz 2f
	ret
2:	xorl %ebp,%ebp
	movq %r12,%rax
	movq %r15,%r12
	call *%rax
	SITE 0x80000012, 1
	movl %eax,%edi
	movl $60,%eax
	syscall
.size __clone,.-__clone

BEGIN __unmapself
	movq %r12,%rdi
	movq %r13,%rsi
	movl $11,%eax
	syscall
	xorl %edi,%edi
	movl $60,%eax
	syscall
.size __unmapself,.-__unmapself

// What a jmp_buf holds: frame and stack pointer, number of the site, end of the side stack.
BEGIN __unified_setjmp
	movq %rbp,(%r12)
	leaq 8(%rsp),%rax
	movq %rax,8(%r12)
	movq %r13,16(%r12)
	movq %fs:8,%rax
	movq %rax,24(%r12)
	xorl %eax,%eax
	ret
.size __unified_setjmp,.-__unified_setjmp

BEGIN longjmp
.globl _longjmp
_longjmp:
	movl $1,%eax
	testl %r13d,%r13d
	cmovnzl %r13d,%eax
	movq (%r12),%rbp
	movq 8(%r12),%rsp
	movq 16(%r12),%rcx
	movq 24(%r12),%rdx
	movq %rdx,%fs:8
	jmp *unified_sites+8(,%rcx,8)
.size longjmp,.-longjmp

// Rounding and exceptions as aarch64 has them: FPCR's bits 22 and 23, FPSR's 0 to 4. Here those of MXCSR: rounding in bits
// 13 (down) and 14 (up), exceptions in 0 (invalid), 2 (division by zero), 3 (overflow), 4 (underflow), 5 (inexact).
BEGIN __unified_get_fenv
	stmxcsr -8(%rsp)
	movl -8(%rsp),%ecx
	movl %ecx,%eax
	andl $1,%eax
	movl %ecx,%edx
	shrl $1,%edx
	andl $0x1e,%edx
	orl %edx,%eax
	movl %ecx,%edx
	shll $10,%edx
	andl $0x800000,%edx
	orl %edx,%eax
	shll $8,%ecx
	andl $0x400000,%ecx
	orl %ecx,%eax
	ret
.size __unified_get_fenv,.-__unified_get_fenv

BEGIN __unified_set_fenv
	stmxcsr -8(%rsp)
	movl -8(%rsp),%eax
	andl $~0x603d,%eax
	movl %r12d,%ecx
	andl $1,%ecx
	orl %ecx,%eax
	movl %r12d,%ecx
	andl $0x1e,%ecx
	addl %ecx,%ecx
	orl %ecx,%eax
	movl %r12d,%ecx
	shrl $10,%ecx
	andl $0x2000,%ecx
	orl %ecx,%eax
	shrl $8,%r12d
	andl $0x4000,%r12d
	orl %r12d,%eax
	movl %eax,-8(%rsp)
	ldmxcsr -8(%rsp)
	ret
.size __unified_set_fenv,.-__unified_set_fenv

// x86-64's numbers of aarch64's system calls.
.section .rodata,"a",@progbits
unified_numbers:
#include "numbers.h"
