"""The transform that changes nothing."""

import pytest

from tests.transform.synthetic import UNKNOWN_HIGH, BytesStore, image, regular
from transform.chain import Chain, EndOfDump
from transform.errors import ImageError
from transform.identity import Identity

pytestmark = pytest.mark.t0


def test_bytes_stay() -> None:
    data = image("files", UNKNOWN_HIGH + regular(1, b"/a").SerializeToString())
    chain = Chain([Identity()])
    assert chain.transform("files.img", data) == data
    assert Identity().finish(EndOfDump({}, BytesStore())) == {}


@pytest.mark.parametrize("name", ["pages-1.img", "tmpfs-dev-39.tar.gz.img", "ghost-file-1.img", "dump.log"])
def test_bulk_is_left_alone(name: str) -> None:
    assert not Identity().wants(name)


def test_malformed_images_are_refused() -> None:
    with pytest.raises(ImageError, match=r"files\.img: byte 8"):
        Identity().transform("files.img", image("files") + b"\xff\0\0\0")
