"""Names that come from the other side never reach a path unless they are harmless there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgwire.errors import RemoteProtocolError
from imgwire.names import (
    MAX_NAME,
    MAX_SESSION_NAME,
    check_image_name,
    check_session_name,
    image_kind,
    is_of_pre_dump,
    is_pages,
)
from tests.imgwire.conversations import names

pytestmark = pytest.mark.t0

BAD = ["", ".", "..", ".img", "a/b", "/etc/passwd", "../x", "a\0b", "a\nb", "core-1.img\n", "a b", "ä.img", "x" * 300]


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("check", [check_image_name, check_session_name])
def test_a_bad_name_is_refused(name: str, check: type) -> None:
    with pytest.raises(RemoteProtocolError, match="name"):
        check(name)


@pytest.mark.parametrize("name", ["inventory.img", "tmpfs-dev-39.tar.gz.img", "_", "x" * MAX_NAME])
def test_a_name_of_crius_passes(name: str) -> None:
    assert check_image_name(name) == name


def test_a_session_s_name_is_shorter() -> None:
    assert check_session_name("x" * MAX_SESSION_NAME) == "x" * MAX_SESSION_NAME
    with pytest.raises(RemoteProtocolError, match="session name of 65 bytes is longer than 64"):
        check_session_name("x" * (MAX_SESSION_NAME + 1))


@given(names)
def test_made_of_the_allowed_letters_passes(name: str) -> None:
    assert check_session_name(name) == name


@given(st.text())
def test_what_passes_stays_inside_its_directory(name: str) -> None:
    try:
        check_image_name(name)
    except RemoteProtocolError:
        return
    assert name.isascii() and len(name) <= MAX_NAME
    assert not set(name) & {"/", "\0", "\n"} and not name.startswith(".")


def test_pages_are_told_from_pagemaps() -> None:
    assert is_pages("pages-1.img")
    assert not is_pages("pagemap-1.img")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("core-123.img", "core"),
        ("pagemap-shmem-12.img", "pagemap-shmem"),
        ("tmpfs-dev-9.tar.gz.img", "tmpfs-dev"),
        ("ipcns-msg-11.img", "ipcns-msg"),
        ("-1.img", "-1"),
    ],
)
def test_the_kind_is_the_name_without_numbers(name: str, kind: str) -> None:
    assert image_kind(name) == kind


def test_a_dump_is_told_from_a_pre_dump_by_its_images() -> None:
    pre_dump = ["pagemap-7.img", "pagemap-shmem-9.img", "pages-1.img", "inventory.img"]
    assert all(map(is_of_pre_dump, pre_dump))
    assert not any(map(is_of_pre_dump, ["fdinfo-2.img", "core-7.img", "pstree.img", "tmpfs-dev-9.tar.gz.img"]))
