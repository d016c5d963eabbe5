"""The table of images: every magic once, raw images known by name."""

import pytest

from transform.images.kinds import BY_MAGIC, KINDS, is_raw

pytestmark = pytest.mark.t0


def test_every_kind_has_its_own_name_and_magic() -> None:
    assert len({kind.name for kind in KINDS}) == len(BY_MAGIC) == len(KINDS)


@pytest.mark.parametrize("name", ["pages-1.img", "route6-9.img", "tmpfs-dev-39.tar.gz.img", "netns-ct-10.img"])
def test_images_without_magic_are_known_by_name(name: str) -> None:
    assert is_raw(name)


@pytest.mark.parametrize("name", ["pagemap-1.img", "inventory.img", "core-1.img", "netns-9.img", "pages-1"])
def test_others_have_a_magic(name: str) -> None:
    assert not is_raw(name)
