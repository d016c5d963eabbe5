"""Pagemaps of a CRIU since 4.2 for one before: the transform that puts each count of pages where the old one looks.

Everything else in an image has stayed readable for older releases; without this they restore a process whose memory is
all zeroes. It costs some microseconds an extent, and so is done only where such a CRIU restores.
"""

from collections.abc import Callable

from transform.chain import EndOfDump
from transform.images.pagemap import for_old_readers


def _always() -> bool:
    return True


class PageCounts:
    """Both counts in every pagemap. `needed` is asked when one comes."""

    name = "page counts"
    needs_memory = False
    warnings = ()

    def __init__(self, needed: Callable[[], bool] = _always) -> None:
        self._needed = needed

    def wants(self, image: str) -> bool:
        return image.startswith("pagemap-") and self._needed()

    def transform(self, image: str, data: bytes) -> bytes:
        return for_old_readers(image, data)

    def finish(self, dump: EndOfDump) -> dict[str, bytes]:
        """Nothing was held."""
        del dump
        return {}
