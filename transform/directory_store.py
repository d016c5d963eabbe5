"""Pages images in a directory, for the offline command and for tests of transforms."""

import os
from pathlib import Path

from transform.errors import ImageError
from transform.memory import PageStore


class DirectoryStore(PageStore):
    """A `PageStore` over the files of an images directory; patches are written in place."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(self, image: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; `ImageError` when the file is shorter, `OSError` when it cannot be read."""
        with (self._directory / image).open("rb", buffering=0) as file:
            file.seek(offset)
            data = file.read(length)
        if len(data) != length:
            raise ImageError(image, offset, f"{length} bytes of pages were expected, {len(data)} are there")
        return data

    def patch(self, image: str, offset: int, data: bytes) -> None:
        """Overwrite bytes that the file has; `ImageError` rather than let it grow."""
        with (self._directory / image).open("rb+", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if offset + len(data) > size:
                raise ImageError(image, offset, f"{len(data)} bytes to patch, the image ends at {size}")
            file.seek(offset)
            file.write(data)
