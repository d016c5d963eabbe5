"""The link's I/O: an ordered, reliable channel of messages and image data over connections that may be cut.

One `Channel` per session and side. Senders call `send*` at any time; what they send is numbered and kept until the
other side has processed it. A connection is put in by `run`, which receives until it breaks; between two connections
senders go on until the window is full, then wait. Nothing is lost and nothing comes twice.

`_send_lock` is the only lock. Who holds it may wait for the socket, never for the window: room in the window is
awaited before, so acknowledgements can always come in. Room is not reserved: senders that waited together may
overshoot the window by one frame each.
"""

import math
import os
from collections.abc import Iterator
from typing import Protocol

import trio

from imgnode.nursery import flat_nursery
from imgnode.pacing import Pacer
from imgnode.pipes import Pipe, pending
from imgnode.retention import Kept, KeptPipe, Retention
from imgnode.signalling import Changes
from imgnode.transport import Transport
from imgwire import messages
from imgwire.errors import LocalProtocolError
from imgwire.frames import FLAG_ZSTD, HEADER_SIZE, MAX_DATA, FrameType, Header
from imgwire.link import (
    AckReceived,
    ByeReceived,
    DataStarted,
    Event,
    LinkConnection,
    MessageReceived,
    Sent,
    Sequencer,
)

#: Seconds between two signs of life, and how long silence is taken for life. TCP alone notices a dead peer after
#: a quarter of an hour.
HEARTBEAT = 5.0
SILENCE = 20.0

#: Payload bytes that may be under way without acknowledgement: what 10 Gbit/s hold in 25 ms.
WINDOW = 32 << 20
#: The receiver acknowledges after this many bytes, an eighth of the window: the sender never runs dry.
ACK_EVERY = WINDOW // 8
#: ... or this many frames, so that a sender of small ones never waits for its limit of 64 either.
ACK_EVERY_FRAMES = 16

#: Payload bytes in a spliced frame: it is to pass through a pipe of 256 slots at once. At the sender one is for the
#: header; at the receiver a page that TCP has cut takes two, one page in each 64 KiB.
PIPED_DATA = 236 * 4096


class Silence:
    """When the wait for the other side began that is going on, by trio's clock; never, if none is."""

    def __init__(self) -> None:
        self.since = math.inf

    def __enter__(self) -> None:
        self.since = trio.current_time()

    def __exit__(self, *_: object) -> None:
        self.since = math.inf

    async def watch(self) -> None:
        """Return once it has lasted for SILENCE seconds. One task that looks now and then: a deadline for each chunk
        would cost more than the chunk."""
        while True:
            quiet = trio.current_time() - self.since
            if quiet >= SILENCE:
                return
            await trio.sleep(SILENCE - max(quiet, 0.0))


class Due(Protocol):
    """A protocol that knows how many bytes of payload come next on its connection."""

    @property
    def payload_left(self) -> int:
        """Bytes not taken yet."""

    def payload_bypassed(self, size: int) -> object:
        """`size` bytes were taken from the connection by other means."""


class Payload:
    """The payload of one DATA frame, still on the connection: take it as bytes or by splice, all of it."""

    def __init__(self, transport: Transport, connection: Due, header: Header, silence: Silence | None = None) -> None:
        self._transport, self._connection, self._silence = transport, connection, silence or Silence()
        self.header = header

    @property
    def splices(self) -> bool:
        """Whether `splice` works on this connection."""
        return self._transport.splices

    @property
    def left(self) -> int:
        """Bytes not taken yet."""
        return self._connection.payload_left

    async def read(self) -> bytes:
        """Take 1 or more bytes."""
        with self._silence:
            data = await self._transport.receive_some(self.left)
        self._taken(len(data))
        return data

    async def splice(self, pipe: Pipe) -> int:
        """Take 1 or more bytes into `pipe`; return how many."""
        with self._silence:
            size = await self._transport.receive_pipe(pipe.writer, min(self.left, pipe.size))
        self._taken(size)
        return size

    def _taken(self, size: int) -> None:
        if not size:
            raise trio.BrokenResourceError("the connection ended inside a frame")
        self._connection.payload_bypassed(size)


class Receiver(Protocol):
    """Who takes what comes in."""

    def on_message(self, message: messages.Message) -> None:
        """Take a control message. Not async: a cut must not interrupt it half-way. Longer work goes to a task."""

    async def on_data(self, payload: Payload) -> None:
        """Take all of the payload, into the image that its header names. After a cut the frame comes again, whole."""


class Channel:
    """One side of a session's link."""

    def __init__(self, *, splices: bool = True, window: int = WINDOW, pacer: Pacer | None = None) -> None:
        self.splices = splices  #: whether every connection will, so that `send_pipe` may be used
        self._sequencer: Sequencer[Kept] = Sequencer(window)
        self._pacer = pacer or Pacer(None)
        self._scratch = Pipe()
        self._scratch_used = False
        self._retention = Retention(self._scratch.size)
        self._transport: Transport | None = None
        self._broken = trio.Event()
        self._send_lock = trio.Lock()
        self._room = Changes()
        self._ack_due = trio.Event()
        self._owed_bytes = self._owed_frames = 0
        self.reconnects = -1
        self.bytes_sent = 0  # on the wire, headers included; what is sent again counts again

    @property
    def received(self) -> int:
        """The last frame processed: goes into our greeting."""
        return self._sequencer.received

    @property
    def connected(self) -> bool:
        """Whether a connection is in."""
        return self._transport is not None

    @property
    def kept_bytes(self) -> int:
        """Bytes sent and not acknowledged."""
        return self._sequencer.in_flight

    def set_window(self, window: int) -> None:
        """Take the window that the other side grants."""
        self._sequencer.set_window(window)

    async def send(self, message: messages.Message) -> None:
        """Send a control message."""
        payload = messages.encode(message)
        await self._wait_room(len(payload))
        async with self._send_lock:
            header = Header(FrameType.CONTROL, len(payload), self._sequencer.next_seq)
            await self._keep_and_transmit(header, payload)

    async def send_bytes(self, image: int, offset: int, data: bytes, *, raw_length: int | None = None) -> None:
        """Send image bytes; `raw_length` given: `data` is one zstd frame of that many bytes."""
        await self._wait_room(len(data))
        async with self._send_lock:
            header = Header(
                FrameType.DATA,
                len(data),
                self._sequencer.next_seq,
                0 if raw_length is None else FLAG_ZSTD,
                image,
                offset,
                len(data) if raw_length is None else raw_length,
            )
            await self._keep_and_transmit(header, data)

    async def send_pipe(self, image: int, offset: int, fd: int) -> int:
        """Send what is in the pipe `fd`, one frame at most, without copying; return its size, 0 at end of file.

        BlockingIOError if the pipe is empty.
        """
        await self._wait_room(MAX_DATA)
        try:  # where the lock is free no other task gets its turn: the payload's path has one checkpoint, the caller's
            self._send_lock.acquire_nowait()
        except trio.WouldBlock:
            await self._send_lock.acquire()
        try:
            kept = self._retention.hold(fd, self._pacer.largest_chunk(PIPED_DATA))
            if not kept.size:
                self._retention.release(kept)
                return 0
            seq = self._sequencer.next_seq
            header = Header(FrameType.DATA, kept.size, seq, 0, image, offset, kept.size)
            await self._keep_and_transmit(header, kept)
            return kept.size
        finally:
            self._send_lock.release()

    async def drain(self) -> None:
        """Wait until everything sent so far has been processed by the other side."""
        await self._room.wait_until(lambda: not any(True for _ in self._sequencer.unacknowledged()))

    async def wait_acknowledged(self, most: int) -> None:
        """Wait until at most `most` bytes are sent and not acknowledged."""
        await self._room.wait_until(lambda: self._sequencer.in_flight <= most)

    async def say_bye(self) -> None:
        """Tell the other side that nothing more will come, if it still listens."""
        async with self._send_lock:
            if self._transport is not None:
                await self._transmit(Header(FrameType.BYE), b"")

    async def run(
        self, transport: Transport, connection: LinkConnection, peer_received: int, receiver: Receiver
    ) -> bool:
        """Use a greeted connection until it breaks (False) or the other side says bye (True). Closes `transport`.

        RemoteProtocolError and what `receiver` raises pass through.
        """
        ended, silence = False, Silence()
        self._broken = trio.Event()
        self.reconnects += 1
        try:
            async with flat_nursery() as nursery:
                nursery.start_soon(self._resend, transport, peer_received)
                nursery.start_soon(self._acknowledge, transport)
                nursery.start_soon(self._cancel_when_broken, nursery.cancel_scope)
                nursery.start_soon(self._cancel_when_silent, silence, nursery.cancel_scope)
                ended = await self._receive(transport, connection, receiver, silence)
                nursery.cancel_scope.cancel()
        finally:
            self._detach(transport)
            with trio.CancelScope(shield=True):
                await transport.aclose()
        return ended

    def close(self) -> None:
        """Give back every descriptor."""
        self._retention.close()
        self._scratch.close()

    # ---- sending ----

    async def _wait_room(self, size: int) -> None:
        if not self._sequencer.has_room(size):
            await self._room.wait_until(lambda: self._sequencer.has_room(size))

    async def _keep_and_transmit(self, header: Header, payload: Kept) -> None:
        self._sequencer.keep(header, payload)
        if self._transport is not None:
            await self._transmit(header, payload)

    async def _transmit(self, header: Header, payload: Kept) -> None:
        """Put a frame on the connection; if that fails the connection is given up, and the frame is still kept."""
        transport, whole = self._transport, False
        if transport is None:
            raise LocalProtocolError("no connection to send on")
        try:
            await self._put(transport, header, payload)
            whole = True
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # `whole` stays False: the reader of the connection reports the cut
        finally:
            if not whole:  # cancellation, too, leaves half a frame on the connection
                self._detach(transport)
        self.bytes_sent += HEADER_SIZE + header.length

    async def _put(self, transport: Transport, header: Header, payload: Kept) -> None:
        raw = header.encode()
        await self._pacer.pay(len(raw))
        if isinstance(payload, KeptPipe):
            ahead = await self._load_scratch(transport, raw, payload)
            for _, size in self._parts(ahead + payload.size):
                await self._pacer.pay(size)
                await transport.send_pipe(self._scratch.reader, size)
            self._scratch_used = False
        elif len(payload) <= MAX_DATA // 16 and not self._pacer.limits:
            await transport.send_all(raw + payload)
        else:
            await transport.send_all(raw, more=bool(payload))
            for start, size in self._parts(len(payload)):
                await self._pacer.pay(size)
                await transport.send_all(memoryview(payload)[start : start + size])

    async def _load_scratch(self, transport: Transport, raw: bytes, payload: KeptPipe) -> int:
        """Put header and payload into one pipe, so that one system call sends both; bytes of header in it.

        Pages that begin and end within a page can leave no room for it: then it goes ahead by itself.
        """
        if self._scratch_used:  # what a cut connection has not taken
            self._retention.sink.discard(self._scratch.reader, pending(self._scratch.reader))
        self._scratch_used = True
        os.write(self._scratch.writer, raw)
        if self._retention.copy_into(payload, self._scratch):
            return len(raw)
        self._retention.sink.discard(self._scratch.reader, pending(self._scratch.reader))
        if not self._retention.copy_into(payload, self._scratch):
            raise BrokenPipeError(f"{payload.size} kept bytes do not fit into a pipe any more")
        await transport.send_all(raw, more=True)
        return 0

    def _parts(self, size: int) -> Iterator[tuple[int, int]]:
        """Start and size of what goes out at once: parts come often, for a slow rate must not look like silence."""
        step = self._pacer.largest_chunk(size)
        for start in range(0, size, max(step, 1)):
            yield start, min(step, size - start)

    async def _resend(self, transport: Transport, peer_received: int) -> None:
        async with self._send_lock:
            self._release(self._sequencer.resume(peer_received))
            self._transport = transport
            for frame in self._sequencer.unacknowledged():
                if self._transport is not transport:
                    return
                await self._transmit(frame.header, frame.payload)
        self._room.notify()

    async def _acknowledge(self, transport: Transport) -> None:
        while True:
            with trio.move_on_after(HEARTBEAT):
                await self._ack_due.wait()
            self._ack_due = trio.Event()
            self._owed_bytes = self._owed_frames = 0
            async with self._send_lock:
                if self._transport is transport:
                    await self._transmit(Header(FrameType.ACK, seq=self._sequencer.received), b"")

    def _detach(self, transport: Transport) -> None:
        if self._transport is transport:
            self._transport = None
        self._broken.set()

    async def _cancel_when_broken(self, scope: trio.CancelScope) -> None:
        await self._broken.wait()
        scope.cancel()

    async def _cancel_when_silent(self, silence: Silence, scope: trio.CancelScope) -> None:
        """A connection on which nothing comes for SILENCE seconds is broken: its other side sends heartbeats."""
        await silence.watch()
        scope.cancel()

    def _release(self, frames: list[Sent[Kept]]) -> None:
        for frame in frames:
            self._retention.release(frame.payload)

    # ---- receiving ----

    async def _receive(
        self, transport: Transport, connection: LinkConnection, receiver: Receiver, silence: Silence
    ) -> bool:
        try:
            while True:
                with silence:
                    data = await transport.receive_some(connection.wanted)
                if not data:
                    return False
                for event in connection.receive_data(data):
                    if isinstance(event, ByeReceived):
                        return True
                    if isinstance(event, DataStarted):
                        await self._take_data(Payload(transport, connection, event.header, silence), receiver)
                    else:
                        self._take(event, receiver)
                await trio.lowlevel.checkpoint()  # the only one while there is always something to read
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False

    async def _take_data(self, payload: Payload, receiver: Receiver) -> None:
        self._sequencer.check(payload.header.seq)
        await receiver.on_data(payload)
        if payload.left:
            raise LocalProtocolError(f"{payload.left} bytes of a frame were not taken")
        self._processed(payload.header.seq, payload.header.length)

    def _take(self, event: Event, receiver: Receiver) -> None:
        match event:
            case AckReceived(seq):
                self._release(self._sequencer.acknowledge(seq))
                self._room.notify()
            case MessageReceived(seq, message):
                self._sequencer.check(seq)
                receiver.on_message(message)
                self._processed(seq, ACK_EVERY)
            case _:
                raise LocalProtocolError(f"{type(event).__name__} on an open channel")

    def _processed(self, seq: int, size: int) -> None:
        self._sequencer.accept(seq)
        self._owed_bytes += size
        self._owed_frames += 1
        if self._owed_bytes >= ACK_EVERY or self._owed_frames >= ACK_EVERY_FRAMES:
            self._ack_due.set()
