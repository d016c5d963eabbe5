"""The client side of the page server protocol, against the server side of our own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgwire.errors import LocalProtocolError, RemoteProtocolError
from imgwire.page_client import PageClient, PagesCome
from imgwire.page_server import PageServerConnection, Purpose
from imgwire.page_server_messages import PAGE_SIZE, Command, Header, Layout, PageBytes, PageFlag, PagesAsked

pytestmark = pytest.mark.t0

BASE = 0x7F0000000000


@given(
    st.sampled_from(Layout),
    st.lists(
        st.integers(1, 4).flatmap(lambda size: st.tuples(st.just(size), st.integers(1, size))), min_size=1, max_size=8
    ),
    st.integers(500, 9000),
)
def test_with_a_server(layout: Layout, requests: list[tuple[int, int]], part: int) -> None:
    client, server = PageClient(layout), PageServerConnection(Purpose.LAZY)
    sizes, given_back = [size for size, _ in requests], [size for _, size in requests]
    asked = b"".join(client.get(7, BASE + index * PAGE_SIZE, size) for index, size in enumerate(sizes))
    events = server.receive_data(asked)
    assert events == [PagesAsked(7, BASE + index * PAGE_SIZE, size) for index, size in enumerate(sizes)]
    answers = b"".join(server.answer_get(size) + bytes([size]) * size * PAGE_SIZE for size in given_back)
    come, body = [], b""
    for at in range(0, len(answers), part):
        for event in client.receive_data(answers[at : at + part]):
            if isinstance(event, PageBytes):
                body += event.data
            else:
                come.append(event)
    assert come == [PagesCome(7, BASE + index * PAGE_SIZE, size) for index, size in enumerate(given_back)]
    assert body == b"".join(bytes([size]) * size * PAGE_SIZE for size in given_back)
    assert client.body_left == 0


def test_what_is_due() -> None:
    client = PageClient(Layout.WIDE)
    assert client.wanted == 0
    client.get(7, BASE, 2)
    assert client.wanted == 32
    answer = Header(Command.ADD_F, PageFlag.PRESENT, 2, BASE, 7).encode(Layout.WIDE)
    assert client.receive_data(answer[:5]) == []
    assert client.wanted == 27
    assert client.receive_data(answer[5:]) == [PagesCome(7, BASE, 2)]
    assert (client.wanted, client.body_left) == (0, 2 * PAGE_SIZE)
    client.body_bypassed(PAGE_SIZE)
    with pytest.raises(LocalProtocolError):
        client.body_bypassed(PAGE_SIZE + 1)
    client.body_bypassed(PAGE_SIZE)
    with pytest.raises(RemoteProtocolError, match="asked for nothing"):
        client.receive_data(b"x")


@pytest.mark.parametrize(
    "answer",
    [
        Header(Command.ADD_F, PageFlag.PRESENT, 2, BASE + PAGE_SIZE, 7),
        Header(Command.ADD_F, PageFlag.PRESENT, 2, BASE, 8),
        Header(Command.ADD_F, PageFlag.PRESENT, 3, BASE, 7),
        Header(Command.ADD_F, PageFlag.PRESENT, 0, BASE, 7),
        Header(Command.ADD_F, PageFlag.LAZY, 2, BASE, 7),
        Header(Command.GET, pages=2, address=BASE, target=7),
    ],
    ids=str,
)
def test_answers_to_something_else(answer: Header) -> None:
    client = PageClient(Layout.NARROW)
    client.get(7, BASE, 2)
    with pytest.raises(RemoteProtocolError):
        client.receive_data(answer.encode(Layout.NARROW))
