"""What a store of images is given in tests: frames as they come from a connection, images, rounds."""

import pytest

from imgcache.store import ImageStore
from imgnode.channel import Payload
from imgnode.nursery import flat_nursery
from imgwire.errors import RemoteProtocolError
from imgwire.frames import FLAG_ZSTD, FrameType, Header
from imgwire.link import Role
from imgwire.messages import BeginRound, EndImage, OpenImage
from tests.playbook import greeted, socket_pair, stream_pair


def header(data: bytes, image: int = 0, offset: int = 0, raw_length: int | None = None) -> Header:
    flags, raw = (0, len(data)) if raw_length is None else (FLAG_ZSTD, raw_length)
    return Header(FrameType.DATA, len(data), 1, flags, image, offset, raw)


async def receive(store: ImageStore, head: Header, data: bytes, *, splice: bool = True) -> None:
    """Give the store a frame as it comes from a connection; a shorter `data` ends the connection inside of it."""
    near, far = socket_pair() if splice else stream_pair()
    connection = greeted(Role.CACHE)
    connection.receive_data(head.encode())
    try:
        async with flat_nursery() as nursery:

            @nursery.start_soon
            async def send() -> None:
                await near.send_all(data)
                await near.aclose()

            await store.receive(Payload(far, connection, head))
    finally:
        await near.aclose()
        await far.aclose()


async def put_round(store: ImageStore, number: int, snapshot: str = "", **images: bytes) -> None:
    """A round of such images and an inventory comes in; image numbers are a hundred for each round."""
    store.begin_round(BeginRound(number, snapshot))
    for image, (name, data) in enumerate([*images.items(), ("inventory", b"i")], number * 100):
        store.open(OpenImage(image, f"{name.replace('_', '-')}.img", round=number))
        if data:
            await receive(store, header(data, image), data)
        store.end(EndImage(image, len(data)))


def opened(store: ImageStore, *, digest: bool = False) -> None:
    store.open(OpenImage(0, "a.img", digest=digest))


async def refused(store: ImageStore, head: Header, data: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError, match=reason):
        await receive(store, head, data)
