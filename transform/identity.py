"""The transform that changes nothing: every image is decoded, encoded and must come out as it was.

It is the measure of what decoding costs in a session, and a check of the codec on whatever a CRIU writes. Images that
are bulk bytes, archives and the contents of removed files, are left alone: they have no bound.
"""

from transform.chain import EndOfDump
from transform.errors import ImageError
from transform.images.codec import decode
from transform.images.kinds import is_raw


class Identity:
    """Wants every image and returns its bytes; `ImageError` for one that our codec would change."""

    name = "identity"
    needs_memory = False
    warnings = ()

    def wants(self, image: str) -> bool:
        return image.endswith(".img") and not is_raw(image) and not image.startswith("ghost-file-")

    def transform(self, image: str, data: bytes) -> bytes:
        encoded = decode(image, data).encode()
        if encoded != data:
            same = next((i for i, (a, b) in enumerate(zip(data, encoded, strict=False)) if a != b), len(encoded))
            raise ImageError(image, same, "differs after decoding and encoding")
        return encoded

    def finish(self, dump: EndOfDump) -> dict[str, bytes]:
        """Nothing was held."""
        del dump
        return {}
