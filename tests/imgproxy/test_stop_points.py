"""Whether a thread is at an equivalence point, on memory made up for it."""

import json
import struct

import pytest

from imgnode.ptrace import NATIVE, X86_64
from imgproxy.stop_points import CALL_SIZE, Elsewhere, Kind, Point, Points

pytestmark = pytest.mark.t0

SITE, OTHER_SITE, CALL, WAIT, IN_START, RESTORER = 0x801000, 0x801100, 0x802000, 0x802100, 0x803008, 0x804000
STACK = 0x7FFF0000
POINTS = Points(
    sites=frozenset({SITE, OTHER_SITE}),
    polls={0x801200: 0x801300},
    calls=frozenset({CALL}),
    waits=frozenset({WAIT}),
    starts=((0x803000, 0x803010),),
)


class Memory:
    """Bytes at addresses."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}

    def put(self, address: int, data: bytes) -> None:
        self.bytes.update({address + index: value for index, value in enumerate(data)})

    def frame(self, fp: int, saved: int, returns: int) -> None:
        self.put(fp, struct.pack("<QQ", saved, returns))

    def read(self, address: int, size: int) -> bytes:
        found = bytearray()
        while len(found) < size and address + len(found) in self.bytes:
            found.append(self.bytes[address + len(found)])
        return bytes(found)


def registers(pc: int, sp: int = STACK, fp: int = STACK, result: int = 0, link: int = 0) -> list[int]:
    values = [0] * len(NATIVE.names)
    if NATIVE is not X86_64:
        values[30] = link
    values[NATIVE.pc], values[NATIVE.sp], values[NATIVE.fp], values[NATIVE.result] = pc, sp, fp, result % (1 << 64)
    return values


@pytest.fixture
def memory() -> Memory:
    """Three frames that end as they should, and above them a stack pointer with what the stub returns to."""
    found = Memory()
    found.put(STACK - 8, struct.pack("<Q", SITE))
    found.frame(STACK, STACK + 0x100, SITE)
    found.frame(STACK + 0x100, STACK + 0x9000, OTHER_SITE)
    found.frame(STACK + 0x9000, 0, IN_START)
    return found


def test_behind_a_call(memory: Memory) -> None:
    assert POINTS.place(registers(SITE), memory.read) == Point(Kind.SITE, 3)
    assert POINTS.place(registers(SITE + 1), memory.read) == Elsewhere()


def test_in_a_system_call(memory: Memory) -> None:
    def at(pc: int, result: int = 0, returns: int = SITE) -> Point | Elsewhere:
        memory.put(STACK - 8, struct.pack("<Q", returns))
        return POINTS.place(registers(pc, STACK - 8, result=result, link=returns), memory.read)

    assert at(CALL) == at(WAIT) == Point(Kind.CALLING, 3)
    assert at(CALL + CALL_SIZE) == at(WAIT + CALL_SIZE, -4) == Point(Kind.CALLED, 3)
    assert at(WAIT + CALL_SIZE, 4) == Elsewhere(), "what it returned is not translated yet"
    assert at(CALL, returns=RESTORER) == Elsewhere(RESTORER)


def test_a_frame_that_is_a_signal_handlers(memory: Memory) -> None:
    memory.frame(STACK + 0x100, STACK + 0x9000, RESTORER)
    assert POINTS.place(registers(SITE), memory.read) == Elsewhere(RESTORER)


@pytest.mark.parametrize("end", [(0, SITE), (STACK + 0x100, SITE), (STACK + 0x9000, SITE), (1 << 60, SITE)])
def test_a_chain_that_does_not_end_well(memory: Memory, end: tuple[int, int]) -> None:
    memory.frame(STACK + 0x9000, *end)
    assert POINTS.place(registers(SITE), memory.read) == Elsewhere(0)


def test_the_end_of_a_chain_is_where_threads_begin(memory: Memory) -> None:
    memory.frame(STACK + 0x9000, 0, RESTORER)
    assert POINTS.place(registers(SITE), memory.read) == Elsewhere(RESTORER)


def test_as_json_and_back() -> None:
    assert Points.from_plain(json.loads(json.dumps(POINTS.plain()))) == POINTS
