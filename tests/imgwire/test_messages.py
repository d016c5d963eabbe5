"""Every message survives the wire, and one that is wrong cannot be made."""

from typing import get_args

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgwire import messages
from imgwire.errors import RemoteProtocolError
from imgwire.frames import MAX_CONTROL, MAX_DATA
from tests.imgwire.conversations import IDENTITY, cache_greetings, proxy_greetings, to_cache, to_proxy

pytestmark = pytest.mark.t0

EVERY = {*get_args(messages.Message), *get_args(messages.Greeting)}


@given(to_cache | to_proxy)
def test_a_message_survives_the_wire(message: messages.Message) -> None:
    raw = messages.encode(message)
    assert messages.decode_message(raw) == message
    assert len(raw) <= MAX_CONTROL


@given(proxy_greetings | cache_greetings)
def test_a_greeting_survives_the_wire(greeting: messages.Greeting) -> None:
    assert messages.decode_greeting(messages.encode(greeting)) == greeting


def test_the_strategies_above_make_every_kind() -> None:
    seen: set[type] = set()

    @settings(max_examples=1000, derandomize=True, database=None)
    @given(st.data())
    def collect(data: st.DataObject) -> None:
        seen.update(type(data.draw(each)) for each in (to_cache, to_proxy, proxy_greetings, cache_greetings))

    collect()
    assert seen == EVERY


@given(proxy_greetings)
def test_a_greeting_is_no_message(greeting: messages.Greeting) -> None:
    with pytest.raises(RemoteProtocolError, match="a message named"):
        messages.decode_message(messages.encode(greeting))


@given(to_cache)
def test_a_message_is_no_greeting(message: messages.Message) -> None:
    with pytest.raises(RemoteProtocolError, match="a greeting named"):
        messages.decode_greeting(messages.encode(message))


@given(st.binary(max_size=100))
def test_garbage_is_refused(raw: bytes) -> None:
    for decode in (messages.decode_message, messages.decode_greeting):
        with pytest.raises(RemoteProtocolError):
            decode(raw)


@pytest.mark.parametrize("name", [None, 7, "", "no such", ["open"], {"t": "open"}])
def test_an_unknown_name_is_refused(name: object) -> None:
    with pytest.raises(RemoteProtocolError, match="a message named"):
        messages.decode_message(msgpack.packb({"t": name}))


@pytest.mark.parametrize("name", ["", "..", ".x", "a/b", "a\0", "x" * 300])
def test_image_and_session_names_are_checked(name: str) -> None:
    with pytest.raises(RemoteProtocolError, match="name"):
        messages.OpenImage(1, name)
    with pytest.raises(RemoteProtocolError, match="name"):
        messages.Hello(IDENTITY, name)
    raw = msgpack.packb({"t": "open", "image": 1, "name": name})
    with pytest.raises(RemoteProtocolError, match="name"):
        messages.decode_message(raw)


@pytest.mark.parametrize("identity", ["", "0" * 31, "0" * 33, "g" * 32, "A" * 32, "../" + "0" * 29, "0" * 100_000])
def test_a_session_id_is_hex_of_one_length(identity: str) -> None:
    for make in (lambda: messages.Hello(identity, "x"), lambda: messages.Resolve(identity, commit=True)):
        with pytest.raises(RemoteProtocolError, match="session id") as caught:
            make()
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("length", [0, MAX_DATA + 1, 2**32])
def test_a_read_back_has_a_limit(length: int) -> None:
    with pytest.raises(RemoteProtocolError, match="read-back"):
        messages.ReadBack(1, 1, 0, length)


@pytest.mark.parametrize("size", [0, MAX_DATA + 1])
def test_a_patch_has_a_limit(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match="patch"):
        messages.Patch(1, 0, bytes(size))


def test_the_widest_messages_fit_a_frame() -> None:
    assert len(messages.encode(messages.Patch(2**64 - 1, 2**64 - 1, bytes(MAX_DATA)))) <= MAX_CONTROL
    assert len(messages.encode(messages.Reply(2**64 - 1, bytes(MAX_DATA)))) <= MAX_CONTROL


def test_a_version_below_the_oldest_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="below its oldest"):
        messages.Hello(IDENTITY, "x", version=1, oldest=2)


@pytest.mark.parametrize("kind", [messages.Pages, messages.WantPages])
@pytest.mark.parametrize(
    ("pid", "address", "pages"),
    [(0, 4096, 1), (1 << 23, 4096, 1), (7, 4097, 1), (7, 4096, 0), (7, 4096, 2049), (7, (1 << 57) - 4096, 2)],
)
def test_pages_that_no_process_has(
    kind: type[messages.Pages | messages.WantPages], pid: int, address: int, pages: int
) -> None:
    with pytest.raises(RemoteProtocolError):
        kind(pid, address, pages)
