"""Change of ISA: a dump of a process on x86-64 made into one for aarch64, and back.

For executables made by hetcc, whose memory means the same on both: what differs is in few places (change.py). A thread
stands at a site (transform/sites.py) and is described without an ISA (thread.py); each ISA has a module that reads and
writes it in a core image (x86_64.py, aarch64.py). pair.py has the two executables, frames.py the return addresses on
stacks, address_space.py and open_files.py what the kernels number or map differently. Programs of Popcorn's compiler
have other frames on each ISA: of these, threads and stacks are transform/popcorn's, and all else is as here.
"""
