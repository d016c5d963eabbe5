"""A C toolchain whose programs can change ISA while they run: `hetcc`.

It makes a pair of static binaries, x86-64 and aarch64, whose memory means the same on both at every call: all functions
and data at equal addresses, frames of equal layout, no state in registers across a call. See docs/toolchain.md.
"""
