// Arguments come in r12, r13, r14, r15, rdi, rsi, rdx (preserve_none); no register but rbp and rsp need survive.
// A record of the table of sites (transform/sites.py) for the instruction that follows.
.macro SITE number, kind
8:	.pushsection .unified.sites,"",@progbits
	.quad 8b, 0
	.long \number, 0, \kind, 0
	.popsection
.endm

.section .text._start,"ax",@progbits
.globl _start
.type _start,@function
_start:
	xorl %ebp,%ebp
	movq %rsp,%r12
	andq $-16,%rsp
	call _start_c
	hlt
.size _start,.-_start

.section .text.__unified_syscall,"ax",@progbits
.globl __unified_syscall
.type __unified_syscall,@function
__unified_syscall:
	cmpq $unified_numbers_count,%r12
	jae 1f
	movswq unified_numbers(,%r12,2),%rax
	testq %rax,%rax
	js 1f
	movq %rdi,%r10
	movq %rsi,%r8
	movq %rdx,%r9
	movq %r13,%rdi
	movq %r14,%rsi
	movq %r15,%rdx
	cmpq $56,%r12 // openat
	je 3f
	cmpq $220,%r12 // clone: the last two arguments change places
	je 4f
	SITE 0x80000000, 3 // r12 to r15, r10, r8 and r9 hold number and arguments
2:	syscall
	ret
1:	movq $-38,%rax
	ret
3:	movl %r15d,%ecx // O_DIRECTORY, O_NOFOLLOW, O_DIRECT, O_LARGEFILE
	andl $~0x3c000,%edx
	shll $2,%ecx
	andl $0x30000,%ecx
	orl %ecx,%edx
	movl %r15d,%ecx
	shrl $2,%ecx
	andl $0xc000,%ecx
	orl %ecx,%edx
	jmp 2b
4:	xchgq %r10,%r8
	syscall
	ret
.size __unified_syscall,.-__unified_syscall

.section .text.__set_thread_area,"ax",@progbits
.globl __set_thread_area
.type __set_thread_area,@function
__set_thread_area:
	movq %r12,(%r12) // where the compiler looks for the thread pointer
	movq %r12,%rsi
	movl $0x1002,%edi // ARCH_SET_FS
	movl $158,%eax
	syscall
	ret
.size __set_thread_area,.-__set_thread_area

.section .text.__restore_rt,"ax",@progbits
.globl __restore, __restore_rt
__restore:
__restore_rt:
	movl $15,%eax
	syscall

// __clone(function, stack, flags, argument, ...): ptid, tls and ctid are in a buffer, as variable arguments are
.section .text.__clone,"ax",@progbits
.globl __clone
.type __clone,@function
__clone:
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
	movl %eax,%edi
	movl $60,%eax
	syscall
.size __clone,.-__clone

.section .text.__unmapself,"ax",@progbits
.globl __unmapself
__unmapself:
	movq %r12,%rdi
	movq %r13,%rsi
	movl $11,%eax
	syscall
	xorl %edi,%edi
	movl $60,%eax
	syscall

// __syscall_cp_asm(&self->cancel, number, six arguments)
.section .text.__syscall_cp_asm,"ax",@progbits
.globl __syscall_cp_asm, __cp_begin, __cp_end, __cp_cancel
.type __syscall_cp_asm,@function
__syscall_cp_asm:
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
	jmp __unified_syscall
__cp_end:
	ret
__cp_cancel:
	jmp __cancel

.section .text.__unified_setjmp,"ax",@progbits
.globl __unified_setjmp
.type __unified_setjmp,@function
__unified_setjmp:
	movq %rbp,(%r12)
	leaq 8(%rsp),%rax
	movq %rax,8(%r12)
	movq %r13,16(%r12)
	xorl %eax,%eax
	ret

.section .text.longjmp,"ax",@progbits
.globl longjmp, _longjmp
.type longjmp,@function
longjmp:
_longjmp:
	movl $1,%eax
	testl %r13d,%r13d
	cmovnzl %r13d,%eax
	movq (%r12),%rbp
	movq 8(%r12),%rsp
	movq 16(%r12),%rcx
	jmp *unified_sites+8(,%rcx,8)

// x86-64's numbers of aarch64's system calls.
.section .rodata,"a",@progbits
unified_numbers:
#include "numbers.h"
