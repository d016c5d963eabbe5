// Arguments come in x20 to x27 (preserve_none); no register but x29 and sp need survive.

// Which system calls x86-64 has, too.
.section .rodata,"a",@progbits
unified_numbers:
#include "numbers.h"

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

// The same system calls as on x86-64, and those that wait for events at the same site.
.macro SYSTEM_CALL plain, wait
92:
	cmp x20,#unified_numbers_count
	b.hs 91f
	adrp x9,unified_numbers
	add x9,x9,:lo12:unified_numbers
	ldrsh w9,[x9,x20,lsl #1]
	tbnz w9,#31,91f
	mov x8,x20
	mov x0,x21
	mov x1,x22
	mov x2,x23
	mov x3,x24
	mov x4,x25
	mov x5,x26
	cmp x20,#22 // epoll_pwait
	mov w9,#441 // epoll_pwait2
	ccmp x20,x9,#4,ne
	b.ne 1f
	SITE \wait, 4, 92b
	svc #0
	b 90f
1:	SITE \plain, 3, 92b
	svc #0
.endm

.macro SYSTEM_CALL_END
90:	ret
91:	mov x0,#-38 // ENOSYS
	ret
.endm

BEGIN _start
	mov x29,#0
	mov x30,#0
	mov x20,sp
	and sp,x20,#-16
	bl _start_c
	SITE 0x80000010, 1
	brk #1
.size _start,.-_start

// The program begins on another stack, which has its arguments.
BEGIN __unified_enter
	and sp,x20,#-16
	mov x29,#0
	mov x30,#0
	bl __unified_main
	SITE 0x80000011, 1
	brk #1
.size __unified_enter,.-__unified_enter

BEGIN __unified_is_x86
	mov w0,#0
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
	ldr w9,[x20]
	cbnz w9,__cp_cancel
	mov x20,x21
	mov x21,x22
	mov x22,x23
	mov x23,x24
	mov x24,x25
	mov x25,x26
	mov x26,x27
	SYSTEM_CALL 0x80000002, 0x80000003
__cp_end:
	SYSTEM_CALL_END
__cp_cancel:
	b __cancel
.size __syscall_cp_asm,.-__syscall_cp_asm

BEGIN __set_thread_area
	msr tpidr_el0,x20
	mov x0,#0
	ret
.size __set_thread_area,.-__set_thread_area

// Where the kernel calls every handler: in C's convention, the number, the siginfo and the context.
BEGIN __unified_handler
	stp x29,x30,[sp,#-16]!
	sxtw x20,w0
	mov x21,x1
	mov x22,x2
	bl __unified_deliver
	ldp x29,x30,[sp],#16
	ret
.size __unified_handler,.-__unified_handler

.section .text.__restore_rt,"ax",@progbits
.globl __restore, __restore_rt
__restore:
__restore_rt:
	mov x8,#139
	svc #0

// __clone(function, stack, flags, argument, ...): ptid, tls and ctid are in a buffer, as variable arguments are
BEGIN __clone
	and x1,x21,#-16
	uxtw x0,w22
	ldp x2,x3,[x24]
	ldr x4,[x24,#16]
	mov x8,#220
	svc #0
	cbz x0,1f
	ret
1:	mov x29,#0
	mov x9,x20
	mov x20,x23
	blr x9
	SITE 0x80000012, 1
	mov x8,#93
	svc #0
.size __clone,.-__clone

BEGIN __unmapself
	mov x0,x20
	mov x1,x21
	mov x8,#215
	svc #0
	mov x0,#0
	mov x8,#93
	svc #0
.size __unmapself,.-__unmapself

// What a jmp_buf holds: frame and stack pointer, number of the site, end of the side stack.
BEGIN __unified_setjmp
	mov x9,sp
	stp x29,x9,[x20]
	mrs x10,tpidr_el0
	ldr x10,[x10,#8]
	stp x21,x10,[x20,#16]
	mov x0,#0
	ret
.size __unified_setjmp,.-__unified_setjmp

BEGIN longjmp
.globl _longjmp
_longjmp:
	cmp w21,#0
	csinc w0,w21,wzr,ne
	ldp x29,x9,[x20]
	mov sp,x9
	ldp x10,x12,[x20,#16]
	mrs x11,tpidr_el0
	str x12,[x11,#8]
	adrp x11,unified_sites
	add x11,x11,:lo12:unified_sites
	add x11,x11,#8
	ldr x11,[x11,x10,lsl #3]
	br x11
.size longjmp,.-longjmp

// Rounding, FPCR's bits 22 and 23, and exceptions, FPSR's 0 to 4.
BEGIN __unified_get_fenv
	mrs x9,fpcr
	mrs x10,fpsr
	and x9,x9,#0xc00000
	and x10,x10,#0x1f
	orr x0,x9,x10
	ret
.size __unified_get_fenv,.-__unified_get_fenv

BEGIN __unified_set_fenv
	mrs x9,fpcr
	mrs x10,fpsr
	and x11,x20,#0xc00000
	bic x9,x9,#0xc00000
	orr x9,x9,x11
	msr fpcr,x9
	and x11,x20,#0x1f
	bic x10,x10,#0x1f
	orr x10,x10,x11
	msr fpsr,x10
	ret
.size __unified_set_fenv,.-__unified_set_fenv
