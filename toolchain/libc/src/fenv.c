// Rounding and floating-point exceptions, with aarch64's bits on all ISAs: the runtime reads and writes them.
#include <fenv.h>

#define ROUNDINGS 0xc00000L

long __unified_get_fenv(void); // FPCR's rounding and FPSR's exceptions
void __unified_set_fenv(long);

int feclearexcept(int mask)
{
	__unified_set_fenv(__unified_get_fenv() & ~(long)(mask & FE_ALL_EXCEPT));
	return 0;
}

int feraiseexcept(int mask)
{
	__unified_set_fenv(__unified_get_fenv() | (mask & FE_ALL_EXCEPT));
	return 0;
}

int fetestexcept(int mask) { return __unified_get_fenv() & mask & FE_ALL_EXCEPT; }

int fegetround(void) { return __unified_get_fenv() & ROUNDINGS; }

int __fesetround(int rounding)
{
	__unified_set_fenv((__unified_get_fenv() & ~ROUNDINGS) | (rounding & ROUNDINGS));
	return 0;
}

int fegetenv(fenv_t *environment)
{
	long now = __unified_get_fenv();
	environment->__fpcr = now & ROUNDINGS;
	environment->__fpsr = now & FE_ALL_EXCEPT;
	return 0;
}

int fesetenv(const fenv_t *environment)
{
	__unified_set_fenv(environment == FE_DFL_ENV ? 0 : (long)(environment->__fpcr | environment->__fpsr));
	return 0;
}
