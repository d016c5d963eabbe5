"""Ports of listening TCP sockets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transform.synthetic import UNKNOWN_HIGH, BytesStore, image, inet, regular
from transform.chain import EndOfDump
from transform.errors import OptionError, TransformError
from transform.images.codec import decode
from transform.images.proto import files_pb2
from transform.port_map import FILES, PortMap, parse_port_maps

pytestmark = pytest.mark.t0
ESTABLISHED, UDP, V6 = 1, 17, 10


def ports(data: bytes) -> list[int]:
    return [file.isk.src_port for file in decode(FILES, data).messages(files_pb2.File)]


def test_values_are_pairs_alone_or_with_commas() -> None:
    assert parse_port_maps(["80:8080", "2000:3000,5000:6000"]) == {80: 8080, 2000: 3000, 5000: 6000}


@pytest.mark.parametrize(
    "value", ["", "80", "80:", "80:a", "80:81:82", "0:1", "1:0", "1:65536", "-1:2", "1:2,1:3", "1:²", "9" * 5000 + ":1"]
)
def test_wrong_options_are_named(value: str) -> None:
    with pytest.raises(OptionError, match="--tcp-listen-remap"):
        parse_port_maps([value])


@given(st.text(max_size=12))
def test_any_text_is_ports_or_an_option_error(value: str) -> None:
    try:
        parsed = parse_port_maps([value])
    except OptionError:
        return
    assert all(0 < port < 65536 for pair in parsed.items() for port in pair)


def test_every_listener_moves_and_nothing_else() -> None:
    before = image(
        "files",
        *(inet(1, 80), inet(2, 80, family=V6), inet(3, 80, state=ESTABLISHED), inet(4, 80, state=7, proto=UDP)),
        *(inet(5, 81), inet(6, 8080, state=10, proto=UDP)),
    )
    after = PortMap({80: 81, 81: 80}).transform(FILES, before)
    assert ports(after) == [81, 81, 80, 80, 80, 8080]


def test_only_the_port_changes() -> None:
    raw = b"\x08\x04\x10\x01" + UNKNOWN_HIGH + inet(1, 80).SerializeToString()[4:]
    before = image("files", raw, regular(2, b"/f"))
    assert PortMap({80: 82}).transform(FILES, before) == before.replace(b"\x38\x50\x40", b"\x38\x52\x40")


def test_a_port_that_nobody_listens_on() -> None:
    with pytest.raises(
        TransformError, match=r"--tcp-listen-remap 90:91: nothing listens there \(ports that do: 80, 81\)"
    ):
        PortMap({90: 91, 80: 82}).transform(FILES, image("files", inet(1, 81), inet(2, 80)))
    with pytest.raises(TransformError, match="ports that do: none"):
        PortMap({90: 91}).finish(EndOfDump({}, BytesStore()))
