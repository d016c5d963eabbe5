// Arguments come in x20 to x26 (preserve_none); no register but x29 and sp need survive.
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
	mov x29,#0
	mov x30,#0
	mov x20,sp
	and sp,x20,#-16
	bl _start_c
	brk #1
.size _start,.-_start

.section .text.__unified_syscall,"ax",@progbits
.globl __unified_syscall
.type __unified_syscall,@function
__unified_syscall:
	mov x8,x20
	mov x0,x21
	mov x1,x22
	mov x2,x23
	mov x3,x24
	mov x4,x25
	mov x5,x26
	SITE 0x80000000, 3
	svc #0
	ret
.size __unified_syscall,.-__unified_syscall

.section .text.__set_thread_area,"ax",@progbits
.globl __set_thread_area
.type __set_thread_area,@function
__set_thread_area:
	msr tpidr_el0,x20
	mov x0,#0
	ret
.size __set_thread_area,.-__set_thread_area

.section .text.__restore_rt,"ax",@progbits
.globl __restore, __restore_rt
__restore:
__restore_rt:
	mov x8,#139
	svc #0

// __clone(function, stack, flags, argument, ...): ptid, tls and ctid are in a buffer, as variable arguments are
.section .text.__clone,"ax",@progbits
.globl __clone
.type __clone,@function
__clone:
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
	mov x8,#93
	svc #0
.size __clone,.-__clone

.section .text.__unmapself,"ax",@progbits
.globl __unmapself
__unmapself:
	mov x0,x20
	mov x1,x21
	mov x8,#215
	svc #0
	mov x0,#0
	mov x8,#93
	svc #0

// __syscall_cp_asm(&self->cancel, number, six arguments)
.section .text.__syscall_cp_asm,"ax",@progbits
.globl __syscall_cp_asm, __cp_begin, __cp_end, __cp_cancel
.type __syscall_cp_asm,@function
__syscall_cp_asm:
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
	b __unified_syscall
__cp_end:
	ret
__cp_cancel:
	b __cancel

.section .text.__unified_setjmp,"ax",@progbits
.globl __unified_setjmp
.type __unified_setjmp,@function
__unified_setjmp:
	mov x9,sp
	stp x29,x9,[x20]
	str x21,[x20,#16]
	mov x0,#0
	ret

.section .text.longjmp,"ax",@progbits
.globl longjmp, _longjmp
.type longjmp,@function
longjmp:
_longjmp:
	cmp w21,#0
	csinc w0,w21,wzr,ne
	ldp x29,x9,[x20]
	mov sp,x9
	ldr x10,[x20,#16]
	adrp x11,unified_sites
	add x11,x11,:lo12:unified_sites
	add x11,x11,#8
	ldr x11,[x11,x10,lsl #3]
	br x11
