"""The TCP stream from an original image-proxy to an original image-cache, as a receiver sees it, sans I/O.

One direction, no greeting, header and body again and again until the stream ends. The list of ids is sent in pieces: a
header's size is that of the whole list, or, from an unmodified sender, of the last id, of which it then sends what goes
beyond all that it has sent. Both bodies have max(0, size - bytes of the list that have come), but only the first can be
read; so ids are taken from the images, in order of appearance, and the list is skipped.

Source: recordings of the original proxy (CRIU 3.14), unmodified and mended.
"""

from dataclasses import dataclass

from imgwire.errors import LocalProtocolError, RemoteProtocolError
from imgwire.img_remote_messages import LENGTH, PARENT, RemoteEntry, message_length


@dataclass(frozen=True)
class ImageBegun:
    """An image of `size` bytes follows."""

    name: str
    snapshot: str
    size: int


@dataclass(frozen=True)
class ImageBytes:
    """Some of its bytes. They can be taken by other means: see `RemoteStream.body_left`."""

    data: bytes


@dataclass(frozen=True)
class ImageEnded:
    """All of them have come."""


StreamEvent = ImageBegun | ImageBytes | ImageEnded


class RemoteStream:
    """The receiving end of the stream between an original proxy and an original cache."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._need = LENGTH.size
        self._in_entry = False
        self._skip = 0  # bytes of the list of ids that are due now
        self._listed = 0  # bytes of it that have come
        self._body = 0
        self._known: list[str] = []

    @property
    def snapshots(self) -> list[str]:
        """Every id so far, oldest first."""
        return list(self._known)

    @property
    def body_left(self) -> int:
        """Bytes of the present image that have not come."""
        return self._body

    @property
    def wanted(self) -> int:
        """Bytes that are due next and are no image's: 0 where an image's are."""
        return 0 if self._body else self._skip or self._need - len(self._buffer)

    @property
    def between_images(self) -> bool:
        """Whether the stream may end here, or rest."""
        return not (self._body or self._buffer or self._in_entry or self._skip)

    def receive_data(self, data: bytes) -> list[StreamEvent]:
        """Take any bytes; return what they mean."""
        events: list[StreamEvent] = []
        view = memoryview(data)
        while view:
            used, found = self._take(view)
            events += found
            view = view[used:]
        return events

    def body_bypassed(self, size: int) -> list[StreamEvent]:
        """`size` bytes of the present image were taken from the connection by other means."""
        if size > self._body:
            raise LocalProtocolError(f"{size} bytes bypassed where {self._body} are left")
        self._body -= size
        return [] if self._body else [ImageEnded()]

    def receive_eof(self) -> None:
        """The end of the stream: between two images, else RemoteProtocolError."""
        if not self.between_images:
            raise RemoteProtocolError("the stream ends in the middle of an image")

    def _take(self, view: memoryview) -> tuple[int, list[StreamEvent]]:
        if self._body:
            part = bytes(view[: self._body])
            return len(part), [ImageBytes(part), *self.body_bypassed(len(part))]
        if self._skip:
            used = min(self._skip, len(view))
            self._skip -= used
            return used, []
        part = bytes(view[: self._need - len(self._buffer)])
        self._buffer += part
        if len(self._buffer) < self._need:
            return len(part), []
        taken = bytes(self._buffer)
        self._buffer.clear()
        return len(part), self._step(taken)

    def _step(self, taken: bytes) -> list[StreamEvent]:
        if not self._in_entry:
            self._in_entry, self._need = True, message_length(taken)
            return []
        self._in_entry, self._need = False, LENGTH.size
        entry = RemoteEntry.decode(taken)
        if entry.name == PARENT:
            self._skip = max(0, entry.size - self._listed)
            self._listed += self._skip
            return []
        if entry.snapshot not in self._known:
            self._known.append(entry.snapshot)
        self._body = entry.size
        begun = ImageBegun(entry.name, entry.snapshot, entry.size)
        return [begun] if entry.size else [begun, ImageEnded()]
