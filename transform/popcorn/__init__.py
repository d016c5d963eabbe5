"""Executables made by Popcorn's compiler: the stack of a thread, rewritten for the other ISA value by value.

Popcorn's compiler gives functions frames as each ISA wants them, and says in sections of the executable
(`.stack_transform.*`) where every live value is at every call. sections.py and stackmaps.py read those, machine.py has
what is fixed for an ISA. unwind.py walks the source's frames; matching.py says for a call site what goes where;
pointers.py moves addresses of what lies on a stack; rewrite.py makes the target's frames and registers, arch_values.py
the values that only one ISA has. Nothing here knows of images but cores.py and pair.py, which transform/isa/change.py
uses.
"""
