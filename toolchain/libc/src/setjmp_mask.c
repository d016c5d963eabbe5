// sigsetjmp is a macro (build.py puts it into setjmp.h): setjmp, whose result goes through this.
#include <setjmp.h>
#include <signal.h>

int __unified_mask_jump(sigjmp_buf buffer, int came, int save)
{
	if (!came) {
		buffer->__fl = save;
		if (save)
			sigprocmask(SIG_SETMASK, 0, (sigset_t *)buffer->__ss);
	} else if (buffer->__fl) {
		sigprocmask(SIG_SETMASK, (sigset_t *)buffer->__ss, 0);
	}
	return came;
}

_Noreturn void siglongjmp(sigjmp_buf buffer, int value) { longjmp(buffer, value); }
