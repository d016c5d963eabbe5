"""Where values are in a frame: what records say, checked, with places in memory given from the CFA.

A record has a place in memory from a register, which is the frame's own frame or stack pointer.
"""

from enum import IntEnum
from typing import NamedTuple

from transform.errors import TransformError
from transform.popcorn.machine import FROM_CFA, Machine
from transform.popcorn.sections import CallSite, CallSites


class Where(IntEnum):
    """What `at` of a place means: a DWARF number, bytes from the CFA (twice), the value itself, where it is loaded."""

    REGISTER = 0
    MEMORY = 1
    ADDRESS = 2
    VALUE = 3
    LOADED = 4


class Place(NamedTuple):
    """Where a value is; ADDRESS: it is the address of what is there."""

    where: Where
    at: int


class Side:
    """One executable of a pair, and its ISA. All methods raise TransformError for a record that makes no sense."""

    def __init__(self, sites: CallSites, machine: Machine) -> None:
        self.sites, self.machine = sites, machine
        self._saved: dict[int, list[tuple[int, int]]] = {}

    def saved(self, site: CallSite) -> list[tuple[int, int]]:
        """What a frame saves besides frame pointer and return address: register, and bytes from the CFA."""
        if site.id not in self._saved:
            self._saved[site.id] = self._saved_registers(site)
        return self._saved[site.id]

    def _saved_registers(self, site: CallSite) -> list[tuple[int, int]]:
        machine, found = self.machine, []
        for saved in site.saved:
            at = saved.offset + FROM_CFA
            if saved.register in (machine.frame_pointer, machine.return_address):
                if saved.offset != (0 if saved.register == machine.frame_pointer else 8):
                    raise doubt(site, f"the caller's frame pointer or pc at {saved.offset} from the frame pointer")
            elif saved.register not in machine.kept or not -site.frame_size <= at <= FROM_CFA - 8:
                raise doubt(site, f"register {saved.register} saved at {saved.offset} from the frame pointer")
            else:
                found.append((saved.register, at))
        return found

    def in_frame(self, site: CallSite, register: int, offset: int) -> int:
        """Bytes from the CFA to what is `offset` bytes from a register."""
        if register == self.machine.frame_pointer:
            return FROM_CFA + offset
        if register == self.machine.stack_pointer:
            return offset - site.frame_size
        raise doubt(site, f"a place relative to register {register}")

    def register(self, site: CallSite, register: int, offset: int, size: int) -> Place:
        """A register that can hold `size` bytes. `offset`: of the part of it, in bits."""
        own = register in (self.machine.frame_pointer, self.machine.stack_pointer)
        if own or offset or not 0 < size <= self.machine.size(register):
            raise doubt(site, f"{size} bytes in register {register} of {self.machine.name}, bit {offset}")
        return Place(Where.REGISTER, register)

    def memory(self, site: CallSite, register: int, offset: int, size: int) -> Place:
        """Memory of the frame, or of what the caller passes on the stack."""
        at = self.in_frame(site, register, offset)
        if at < 0 and not -site.frame_size <= at <= at + size <= FROM_CFA:
            raise doubt(site, f"{size} bytes at {at} from the end of a frame of {site.frame_size}")
        return Place(Where.MEMORY, at)


def doubt(site: CallSite, reason: str) -> TransformError:
    """The error for records of which it is not certain what they mean."""
    return TransformError(f"call site {site.id} ({site.address:#x}): {reason}: the records cannot be followed")
