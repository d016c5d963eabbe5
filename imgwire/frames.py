"""The frame of the link: a fixed header of 32 bytes, then `length` bytes of payload.

The header is fixed so that a receiver reads exactly it, then lets the payload of a DATA frame go from the socket to
the store by splice: no byte of a page is looked at. Integers are little endian.

| offset | size | field | meaning |
|---|---|---|---|
| 0 | 1 | type | 1 HELLO, 2 CONTROL, 3 DATA, 4 ACK, 5 BYE |
| 1 | 1 | flags | DATA: 1 = payload is one zstd frame |
| 2 | 2 | check | "IP": tells a lost frame boundary at once |
| 4 | 4 | image | DATA: number of the image |
| 8 | 4 | length | bytes of payload that follow |
| 12 | 4 | raw_length | DATA: bytes of image after decompression |
| 16 | 8 | seq | CONTROL, DATA: number of the frame, from 1; ACK: last frame processed |
| 24 | 8 | offset | DATA: where in the image |
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

from imgwire.errors import LocalProtocolError, RemoteProtocolError

HEADER_SIZE = 32

#: Most image bytes in one DATA frame: the pipe size that CRIU's pipes can be enlarged to without privilege.
MAX_DATA = 1 << 20
#: zstd's worst growth over MAX_DATA (ZSTD_compressBound) is below 4 KiB + 0.4 %.
MAX_COMPRESSED = MAX_DATA + (1 << 14)
#: Longest control message: the widest is a patch of one MiB with its map around.
MAX_CONTROL = MAX_DATA + (1 << 16)
#: Longest hello: node facts and a few names.
MAX_HELLO = 1 << 16

FLAG_ZSTD = 1

_HEADER = struct.Struct("<BBHIIIQQ")
_CHECK = 0x5049  # "IP"


class FrameType(IntEnum):
    """What a frame is for."""

    HELLO = 1  #: first of each side on every connection; not numbered
    CONTROL = 2  #: one message, numbered
    DATA = 3  #: bytes of an image, numbered
    ACK = 4  #: every frame up to `seq` has been processed; also the heartbeat
    BYE = 5  #: this side sends nothing more; not numbered


_LIMITS = {
    FrameType.HELLO: MAX_HELLO,
    FrameType.CONTROL: MAX_CONTROL,
    FrameType.DATA: MAX_COMPRESSED,
    FrameType.ACK: 0,
    FrameType.BYE: 0,
}


@dataclass(frozen=True)
class Header:
    """A frame's header; one that the protocol does not allow cannot be held."""

    type: FrameType
    length: int = 0
    seq: int = 0
    flags: int = 0
    image: int = 0
    offset: int = 0
    raw_length: int = 0

    def __post_init__(self) -> None:
        if self.length > _LIMITS[self.type]:
            raise RemoteProtocolError(
                f"{self.type.name} frame of {self.length} bytes: the limit is {_LIMITS[self.type]}"
            )
        if self.type is FrameType.DATA:
            self._check_data()
        elif self.flags or self.image or self.offset or self.raw_length:
            raise RemoteProtocolError(f"{self.type.name} frame with the fields of a DATA frame")
        if self.seq == 0 and self.type in (FrameType.DATA, FrameType.CONTROL):
            raise RemoteProtocolError(f"{self.type.name} frame without a number")

    @property
    def compressed(self) -> bool:
        """Whether the payload is one zstd frame."""
        return bool(self.flags & FLAG_ZSTD)

    def encode(self) -> bytes:
        """The 32 bytes."""
        return _HEADER.pack(
            self.type, self.flags, _CHECK, self.image, self.length, self.raw_length, self.seq, self.offset
        )

    @classmethod
    def decode(cls, raw: bytes) -> "Header":
        """Parse 32 bytes; RemoteProtocolError if they are no header."""
        if len(raw) != HEADER_SIZE:
            raise LocalProtocolError(f"a header has {HEADER_SIZE} bytes, not {len(raw)}")
        kind, flags, check, image, length, raw_length, seq, offset = _HEADER.unpack(raw)
        if check != _CHECK:
            raise RemoteProtocolError(f"no frame header of the imgproxy link: {raw[:16].hex()}")
        try:
            frame_type = FrameType(kind)
        except ValueError as error:
            raise RemoteProtocolError(f"unknown frame type {kind}") from error
        return cls(frame_type, length, seq, flags, image, offset, raw_length)

    def _check_data(self) -> None:
        if self.flags & ~FLAG_ZSTD:
            raise RemoteProtocolError(f"DATA frame with unknown flags {self.flags:#x}")
        if not 1 <= self.raw_length <= MAX_DATA:
            raise RemoteProtocolError(f"DATA frame for {self.raw_length} bytes of image: the limit is {MAX_DATA}")
        if not self.compressed and self.length != self.raw_length:
            raise RemoteProtocolError(f"DATA frame of {self.length} bytes says it has {self.raw_length}")
        if self.offset + self.raw_length > 1 << 63:
            raise RemoteProtocolError(f"DATA frame at offset {self.offset}")
