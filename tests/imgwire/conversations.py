"""Conversations for the protocol tests: every message, recorded dialogues with CRIU, and ways to cut them in pieces."""

from collections.abc import Iterable
from itertools import pairwise

from hypothesis import strategies as st

from imgwire import messages
from imgwire.frames import FLAG_ZSTD, FrameType, Header
from imgwire.link import DataPayload, Event, LinkConnection

IDENTITY = "0123456789abcdef" * 2

#: What `criu dump --stream` (4.1.1) sent for two images, without the descriptors: each 00 carries one.
RECORDED_DUMP = bytes.fromhex("0d0000000a0b736563636f6d702e696d67" + "00" + "0b0000000a0966696c65732e696d67" + "00")
RECORDED_NAMES = ("seccomp.img", "files.img")

names = st.from_regex(r"\A[A-Za-z0-9_-][A-Za-z0-9._-]{0,40}\Z")
numbers = st.integers(0, 2**63)
text = st.text(max_size=60)
paths = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
facts = st.dictionaries(text, st.none() | st.booleans() | numbers | text | st.binary(max_size=9), max_size=4)
pids = st.integers(1, 1 << 22)
addresses = st.integers(0, 1 << 44).map(lambda page: page << 12)

hellos = st.builds(
    messages.Hello,
    session=st.binary(min_size=16, max_size=16).map(bytes.hex),
    name=names,
    version=st.integers(5, 9),
    oldest=st.integers(0, 5),
    resume=st.booleans(),
    received=numbers,
    wait_restored=st.booleans(),
    need=numbers,
    facts=facts,
)
resolves = st.builds(
    messages.Resolve, session=st.binary(min_size=16, max_size=16).map(bytes.hex), commit=st.booleans(), reason=text
)
proxy_greetings = hellos | resolves
cache_greetings = (
    st.builds(messages.Welcome, version=numbers, received=numbers, window=numbers, facts=facts)
    | st.builds(messages.Refused, reason=text, final=st.booleans())
    | st.builds(messages.Resolved, state=text)
)
to_cache = st.one_of(
    st.builds(messages.BeginRound, round=numbers, snapshot=paths),
    st.builds(messages.DropRound, round=numbers),
    st.builds(
        messages.OpenImage, image=numbers, name=names, digest=st.booleans(), round=numbers, composed=st.booleans()
    ),
    st.builds(
        messages.Compose,
        image=numbers,
        runs=st.integers(1, 9).flatmap(lambda n: st.binary(min_size=16 * n, max_size=16 * n)),
    ),
    st.builds(messages.EndImage, image=numbers, size=numbers, digest=st.none() | st.binary(min_size=16, max_size=16)),
    st.builds(messages.ReadBack, request=numbers, image=numbers, offset=numbers, length=st.integers(1, 1 << 20)),
    st.builds(messages.Patch, image=numbers, offset=numbers, data=st.binary(min_size=1, max_size=300)),
    st.builds(messages.Sync, request=numbers),
    st.builds(messages.Restore, options=st.lists(text, max_size=5).map(tuple), lazy=st.booleans()),
    st.builds(messages.MemoryFollows, image=numbers),
    st.builds(messages.Pages, pid=pids, address=addresses, pages=st.integers(1, 2048)),
    st.builds(messages.CheckCpu, request=numbers, cpuinfo=st.binary(max_size=100)),
    st.builds(messages.ImagesComplete, images=numbers, size=numbers, variant=text),
    st.just(messages.Commit()),
    st.builds(messages.Abort, reason=text),
)
to_proxy = st.one_of(
    st.builds(messages.Reply, request=numbers, data=st.binary(max_size=100), error=text),
    st.builds(messages.State, state=text, detail=text),
    st.builds(messages.WantPages, pid=pids, address=addresses, pages=st.integers(1, 2048)),
    st.builds(
        messages.Lacking,
        image=numbers,
        offset=numbers,
        ranges=st.lists(st.builds(messages.LACKING.pack, pids, addresses, st.integers(1, 2048)), max_size=5).map(
            b"".join
        ),
        more=st.booleans(),
    ),
)


def control(seq: int, message: messages.Message) -> bytes:
    payload = messages.encode(message)
    return Header(FrameType.CONTROL, len(payload), seq).encode() + payload


def data(seq: int, image: int, offset: int, payload: bytes, *, raw_length: int | None = None) -> bytes:
    flags, raw = (0, len(payload)) if raw_length is None else (FLAG_ZSTD, raw_length)
    return Header(FrameType.DATA, len(payload), seq, flags, image, offset, raw).encode() + payload


def ack(seq: int) -> bytes:
    return Header(FrameType.ACK, seq=seq).encode()


def bye() -> bytes:
    return Header(FrameType.BYE).encode()


def hello_frame(greeting: messages.Greeting) -> bytes:
    payload = messages.encode(greeting)
    return Header(FrameType.HELLO, len(payload)).encode() + payload


def split(raw: bytes, cuts: Iterable[int]) -> list[bytes]:
    """`raw` in pieces, cut at the given places (modulo its length); empty pieces are left out."""
    places = sorted({cut % (len(raw) + 1) for cut in cuts} | {0, len(raw)})
    return [raw[start:end] for start, end in pairwise(places) if end > start]


def feed(connection: LinkConnection, pieces: Iterable[bytes]) -> list[Event]:
    return [event for piece in pieces for event in connection.receive_data(piece)]


def joined(events: Iterable[Event]) -> list[Event]:
    """The events with neighbouring pieces of payload made one."""
    result: list[Event] = []
    for event in events:
        if isinstance(event, DataPayload) and result and isinstance(result[-1], DataPayload):
            result[-1] = DataPayload(result[-1].data + event.data)
        else:
            result.append(event)
    return result
