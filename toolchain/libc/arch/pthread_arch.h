static inline uintptr_t __get_tp(void) { return (uintptr_t)__builtin_thread_pointer(); }

#define TLS_ABOVE_TP
#define GAP_ABOVE_TP 16

#define MC_PC pc
