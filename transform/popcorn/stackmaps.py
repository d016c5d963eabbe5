"""The compiler's own records, `.llvm_pcn_stackmaps`, from which Popcorn's tools make `.stack_transform.*`.

They alone have the constants that are too large for a record of a live value (kind CONSTANT_INDEX): each module of the
program has a pool. The section is one module behind the other, each a head, functions, constants and call sites.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from transform.errors import TransformError

SECTION = ".llvm_pcn_stackmaps"
_HEAD = struct.Struct("<BxxxIII")
_FUNCTION = struct.Struct("<QQQII")
_CONSTANT = struct.Struct("<Q")
_SITE = struct.Struct("<QII2xH")
_COUNT = struct.Struct("<2xH")
_ALIGNMENT = 8
LOCATION, LIVE_OUT, ARCH = 12, 4, 20
"""Bytes of the records behind the head of a call site: places of live values, registers, values of one ISA."""


@dataclass(frozen=True, slots=True)
class MappedFunction:
    """`size` of the frame without a return address that a call pushes."""

    address: int
    size: int
    sites: int
    saved: int
    first_saved: int


@dataclass(frozen=True, slots=True)
class MappedSite:
    """The compiler's id is of the module, and not that of `.stack_transform.id`. Records as in those sections."""

    id: int
    function: int  #: index
    offset: int  #: of the return address in the function
    locations: bytes
    arch: bytes


@dataclass(frozen=True, slots=True)
class Module:
    """What one run of the compiler left."""

    functions: tuple[MappedFunction, ...]
    constants: tuple[int, ...]
    sites: tuple[MappedSite, ...]


def modules(name: str, data: bytes) -> Iterator[Module]:
    """Those of a section's bytes. TransformError, saying `name`, for what is none."""
    try:
        at = 0
        while at < len(data):
            module, at = _module(data, at)
            yield module
    except (struct.error, IndexError):
        raise TransformError(f"{name}: {SECTION}: is damaged, or of a version that is not known") from None


def constants_by_address(name: str, data: bytes) -> dict[int, tuple[int, ...]]:
    """The pool that the call site has whose call returns to an address. TransformError."""
    return {
        module.functions[site.function].address + site.offset: module.constants
        for module in modules(name, data)
        for site in module.sites
        if site.function < len(module.functions)
    }


def _module(data: bytes, at: int) -> tuple[Module, int]:
    _, functions, constants, sites = _HEAD.unpack_from(data, at)
    at += _HEAD.size
    ends = at + functions * _FUNCTION.size, at + functions * _FUNCTION.size + constants * _CONSTANT.size
    if ends[1] > len(data):
        raise IndexError
    described = tuple(MappedFunction(*record) for record in _FUNCTION.iter_unpack(data[at : ends[0]]))
    pool = tuple(value for (value,) in _CONSTANT.iter_unpack(data[ends[0] : ends[1]]))
    found, at = [], ends[1]
    for _ in range(sites):
        site, at = _site(data, at)
        found.append(site)
    return Module(described, pool, tuple(found)), at


def _site(data: bytes, at: int) -> tuple[MappedSite, int]:
    number, function, offset, locations = _SITE.unpack_from(data, at)
    places = at + _SITE.size
    outs = places + locations * LOCATION
    (live_outs,) = _COUNT.unpack_from(data, outs)
    archs = outs + _COUNT.size + live_outs * LIVE_OUT
    (values,) = _COUNT.unpack_from(data, archs)
    first = archs + _COUNT.size
    end = first + values * ARCH
    if end > len(data):
        raise IndexError
    site = MappedSite(number, function, offset, data[places:outs], data[first:end])
    return site, end + -end % _ALIGNMENT
