"""How several transforms see one dump."""

from collections.abc import Callable, Mapping

import pytest

from tests.transform.synthetic import BytesStore, extent, mm, pagemap, pstree, vma
from transform import chain as chain_module
from transform.chain import Chain, EndOfDump
from transform.errors import TransformError

pytestmark = pytest.mark.t0
PAGE = 4096
STORE = BytesStore()


class Step:
    """A transform that appends its letter to the images it wants, at once or, where `holds`, at the end."""

    needs_memory = False
    warnings = ()

    def __init__(self, letter: bytes, *wanted: str, holds: bool = False) -> None:
        self.name = letter.decode()
        self.letter = letter
        self.wanted = wanted
        self.holds = holds
        self.held: dict[str, bytes] = {}
        self.seen: Mapping[str, bytes] = {}

    def wants(self, image: str) -> bool:
        return image in self.wanted

    def transform(self, image: str, data: bytes) -> bytes | None:
        if self.holds:
            self.held[image] = data
            return None
        return data + self.letter

    def finish(self, dump: EndOfDump) -> dict[str, bytes]:
        self.seen = dict(dump.images)
        return {image: data + self.letter for image, data in self.held.items()}


class Returns(Step):
    """Returns at the end whatever it is told to."""

    def __init__(self, results: dict[str, bytes], *wanted: str) -> None:
        super().__init__(b"r", *wanted, holds=True)
        self.results = results

    def finish(self, dump: EndOfDump) -> dict[str, bytes]:
        return self.results


def test_an_empty_chain_wants_nothing() -> None:
    chain = Chain([])
    assert not chain.wants("files.img")
    assert chain.finish(STORE) == {}
    assert chain.name == "none"


def test_images_pass_in_the_order_of_the_transforms() -> None:
    chain = Chain([Step(b"a", "x.img"), Step(b"b", "y.img"), Step(b"c", "x.img")])
    assert chain.transform("x.img", b"-") == b"-ac"
    assert chain.transform("y.img", b"-") == b"-b"
    assert not chain.wants("z.img")
    assert chain.finish(STORE) == {}
    assert chain.name == "a, b, c"


def test_a_held_image_passes_the_later_transforms_at_the_end() -> None:
    first, second, third = Step(b"a", "x.img", holds=True), Step(b"b", "x.img", holds=True), Step(b"c", "x.img")
    chain = Chain([Step(b"0", "x.img"), first, second, third])
    assert chain.transform("x.img", b"-") is None
    assert chain.finish(STORE) == {"x.img": b"-0abc"}
    assert first.seen == {"x.img": b"-0"}
    assert second.seen == {"x.img": b"-0a"}
    assert third.seen == {"x.img": b"-0ab"}


def test_images_sent_already_are_seen_as_earlier_transforms_left_them() -> None:
    middle = Step(b"b", "x.img")
    chain = Chain([Step(b"a", "x.img"), middle, Step(b"c", "x.img")])
    assert chain.transform("x.img", b"-") == b"-abc"
    chain.finish(STORE)
    assert middle.seen == {"x.img": b"-a"}


def test_a_transform_may_add_an_image() -> None:
    chain = Chain([Returns({"new.img": b"n"}), Step(b"c", "new.img")])
    assert chain.finish(STORE) == {"new.img": b"nc"}


@pytest.mark.parametrize(
    ("results", "complaint"),
    [
        ({}, r"held x\.img"),
        ({"x.img": b"", "y.img": b""}, r"returned y\.img, which it did not hold"),
        ({"x.img": b"", "pages-1.img": b""}, r"pages are changed through memory only"),
    ],
)
def test_a_transform_that_breaks_the_rules(results: dict[str, bytes], complaint: str) -> None:
    chain = Chain([Returns(results, "x.img"), Step(b"b", "y.img")])
    chain.transform("x.img", b"-")
    chain.transform("y.img", b"-")
    with pytest.raises(TransformError, match=complaint):
        chain.finish(STORE)


def test_an_image_comes_once_and_before_the_end() -> None:
    chain = Chain([Step(b"a", "x.img", "y.img")])
    chain.transform("x.img", b"")
    with pytest.raises(TransformError, match="came twice"):
        chain.transform("x.img", b"")
    chain.finish(STORE)
    with pytest.raises(TransformError, match="after the end"):
        chain.transform("y.img", b"")


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_module, "COLLECTED_LIMIT", 2 * 2**20)
    chain = Chain([Step(b"a", "x.img", "y.img", holds=True)])
    assert chain.transform("x.img", bytes(2**20)) is None
    with pytest.raises(TransformError, match=r"y\.img: the images kept for a exceed 2 MiB"):
        chain.transform("y.img", bytes(2**20 + 1))


class Patches(Step):
    """Writes to memory at the end of the dump."""

    needs_memory = True

    def __init__(self, act: Callable[[EndOfDump], None]) -> None:
        super().__init__(b"p")
        self.act = act

    def finish(self, dump: EndOfDump) -> dict[str, bytes]:
        self.act(dump)
        return {}


def test_memory_is_collected_only_for_who_needs_it() -> None:
    def write(dump: EndOfDump) -> None:
        assert dump.pids() == [5, 6]
        assert dump.memory(5) is dump.memory(5)
        dump.memory(5).write(0x1004, b"patched")

    def read(dump: EndOfDump) -> None:
        assert dump.memory(5).read(0x1000, 12) == b"....patched."

    store = BytesStore(pages_1=b"." * PAGE)
    chain = Chain([Patches(write), Patches(read)])
    images = {
        "pstree.img": pstree(5, 6),
        "mm-5.img": mm(vma(0x1000, 0x2000)),
        "pagemap-5.img": pagemap(1, extent(0x1000, 1)),
    }
    for name, data in images.items():
        assert chain.wants(name)
        assert not Chain([Step(b"a")]).wants(name)
        assert chain.transform(name, data) == data
    assert not chain.wants("pages-1.img")
    assert chain.finish(store) == {}
    assert store.images["pages-1.img"][:12] == b"....patched."


def test_pids_need_the_tree() -> None:
    with pytest.raises(TransformError, match=r"pstree\.img"):
        EndOfDump({}, STORE).pids()
