"""What a transform is, and how several work on one dump.

A session shows the chain every image that it `wants`, in the order in which CRIU finishes them, and at the end of the
dump calls `finish` with a store of pages. The offline command does the same with a directory. All is synchronous and
pure: no files, no sockets, no clock; a session calls it from a worker thread.

Why two steps. CRIU writes pages before core and mm, and inventory.img last, so a transform that depends on several
images (an ISA change reads stack pages, then rewrites core, mm, files and pagemap; a stack shuffle moves frames and
then patches the pointers to them) can only work at the end. Such a one answers None in `transform`: the image is
*held*, and nothing of it is sent, until `finish`, where the transform sees all images and each task's memory, patches
pages through `EndOfDump.memory` and returns the bytes of the images that it held. One that needs nothing but the
image itself (path and port maps) answers at once.

For every image the order is that of the transforms: a later one is given what an earlier one made, held images
included, and sees memory with the earlier one's patches. Pages never pass through the chain, and an image of pages
never changes its size: a transform can change what a page holds, leave out the last extents of a pagemap or add
images, but cannot insert pages into pages-*.img.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from transform.errors import TransformError
from transform.extents import Pagemap
from transform.images.codec import decode
from transform.images.proto import task_pb2
from transform.memory import EarlierRound, Memory, PageStore

COLLECTED_LIMIT = 64 * 2**20
"""Bytes of images that a chain keeps for the end of the dump. The pagemap of a task with two million separate extents
(8 GiB with every other page touched) is under 40 MiB; a dump above this is refused, so that the proxy's memory does
not grow with the process."""

MEMORY_IMAGES = ("pagemap-", "mm-", "pstree.img", "files.img", "memfd.img")
"""Beginnings of the names of images that `Memory` and `EndOfDump.pids` need."""


@dataclass(slots=True)
class EndOfDump:
    """What a transform may look at and change once every image has been seen.

    `images` has all images that the chain wanted, as they stand after the transforms before this one. `before`: the
    pre-dumps that the dump refers to, the latest first. `pagemaps`: those of CRIU's, read when they came.
    """

    images: Mapping[str, bytes]
    store: PageStore
    before: Sequence[EarlierRound] = ()
    pagemaps: Mapping[str, Pagemap] = field(default_factory=dict)
    _memories: dict[int, Memory] = field(default_factory=dict)

    def memory(self, pid: int) -> Memory:
        """The memory of a task (pid as in the images); `AddressError` when it has none of its own in the dump."""
        if pid not in self._memories:
            self._memories[pid] = Memory(pid, self.images, self.store, self.before, self.pagemaps)
        return self._memories[pid]

    def pids(self) -> list[int]:
        """The tasks of the dump, parents first."""
        if "pstree.img" not in self.images:
            raise TransformError("pstree.img: the dump ended without it, or no transform declared needs_memory")
        image = decode("pstree.img", self.images["pstree.img"])
        return [entry.pid for entry in image.messages(task_pb2.PstreeEntry)]


class Transform(Protocol):
    """One rewriting of a dump. An object serves one dump and may keep state between its calls."""

    @property
    def name(self) -> str:
        """How errors and logs call it."""
        ...

    @property
    def needs_memory(self) -> bool:
        """Whether `finish` uses memory or pids: the chain then keeps `MEMORY_IMAGES` for it."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know once all images are through, a line each."""
        ...

    def wants(self, image: str) -> bool:
        """Whether to be shown the image of this name, such as "files.img"."""
        ...

    def transform(self, image: str, data: bytes) -> bytes | None:
        """The image's new bytes (`data` itself if unchanged), or None to hold it until `finish`."""
        ...

    def finish(self, dump: EndOfDump) -> dict[str, bytes]:
        """The bytes of every image held, and of images to be added to the dump, by name."""
        ...


class MakeChain(Protocol):
    """Makes the chain of one round: of the dump, or of a pre-dump, whose images no transform may hold."""

    def __call__(self, *, dump: bool) -> "Chain": ...


class Chain:
    """Several transforms as one. With none it wants nothing. One object serves one dump."""

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self._transforms = tuple(transforms)
        self.needs_memory = any(transform.needs_memory for transform in self._transforms)
        self._versions: dict[str, dict[int, bytes]] = {}
        self._held: dict[str, int] = {}
        self._pagemaps: dict[str, Pagemap] = {}
        self._collected = 0
        self._finished = False

    def followed_by(self, last: Transform) -> "Chain":
        """The same and one more, for a dump that none of them has seen anything of."""
        return Chain((*self._transforms, last))

    @property
    def name(self) -> str:
        return ", ".join(transform.name for transform in self._transforms) or "none"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Those of all transforms."""
        return tuple(warning for transform in self._transforms for warning in transform.warnings)

    def wants(self, image: str) -> bool:
        """Whether the session must hand this image over whole, at most `COLLECTED_LIMIT` bytes of it."""
        if image.startswith("pages-"):
            return False
        if self.needs_memory and image.startswith(MEMORY_IMAGES):
            return True
        return any(transform.wants(image) for transform in self._transforms)

    def transform(self, image: str, data: bytes) -> bytes | None:
        """What to send for `image`; None: nothing yet, `finish` will return it."""
        if self._finished or image in self._versions:
            raise TransformError(f"{image}: came twice, or after the end of the dump")
        self._keep(image, -1, data)
        if self.needs_memory and image.startswith("pagemap-"):
            self._pagemaps[image] = Pagemap(image, data)  # while pages are still on their way
        return self._pass(image, data, 0)

    def finish(self, store: PageStore, before: Sequence[EarlierRound] = ()) -> dict[str, bytes]:
        """Every image held, and images added, in their final form. Patches pages through `store`, and the stores of
        the rounds `before`."""
        self._finished = True
        final: dict[str, bytes] = {}
        for index, transform in enumerate(self._transforms):
            results = transform.finish(EndOfDump(self._as_seen_by(index), store, before, self._pagemaps))
            self._check_released(index, results)
            for image, data in results.items():
                self._held.pop(image, None)
                self._keep(image, index, data)
                passed = self._pass(image, data, index + 1)
                if passed is not None:
                    final[image] = passed
        return final

    def _pass(self, image: str, data: bytes, first: int) -> bytes | None:
        """`data` through the transforms from number `first`, until one holds it."""
        for index, transform in enumerate(self._transforms[first:], first):
            if not transform.wants(image):
                continue
            changed = transform.transform(image, data)
            if changed is None:
                self._held[image] = index
                return None
            if changed != data:
                self._keep(image, index, changed)
            data = changed
        return data

    def _keep(self, image: str, index: int, data: bytes) -> None:
        """Remember what transform number `index` (-1: CRIU) made of the image."""
        self._collected += len(data)
        if self._collected > COLLECTED_LIMIT:
            limit = COLLECTED_LIMIT // 2**20
            raise TransformError(f"{image}: the images kept for {self.name} exceed {limit} MiB")
        self._versions.setdefault(image, {})[index] = data

    def _as_seen_by(self, index: int) -> dict[str, bytes]:
        seen = {}
        for image, versions in self._versions.items():
            before = [number for number in versions if number < index]
            if before:
                seen[image] = versions[max(before)]
        return seen

    def _check_released(self, index: int, results: Mapping[str, bytes]) -> None:
        name = self._transforms[index].name
        held = {image for image, holder in self._held.items() if holder == index}
        if missing := held - results.keys():
            raise TransformError(f"{name}: held {', '.join(sorted(missing))} and did not return it")
        if sent := {image for image in results if image in self._versions} - held:
            raise TransformError(f"{name}: returned {', '.join(sorted(sent))}, which it did not hold")
        if pages := [image for image in results if image.startswith("pages-")]:
            raise TransformError(f"{name}: returned {', '.join(pages)}; pages are changed through memory only")
