long __cancel(void);
__attribute__((used)) long (*const unified_needed)(void) = __cancel; // runtime assembly jumps there
int main(int, char **, char **);
void _init(void) {}
void _fini(void) {}
int __libc_start_main(int (*)(), int, char **, void (*)(), void (*)(), void (*)());
void _start_c(long *p)
{
	int argc = p[0];
	char **argv = (void *)(p + 1);
	__libc_start_main((int (*)())main, argc, argv, _init, _fini, 0);
}
