"""What a page is known by: 128 bits that nobody outside of this program can foretell.

Two pages with the same digest are taken for the same page, so a collision would put one page in the place of another.
By chance that is out of the question: among 2^32 pages (16 TiB) the odds are 2^-65. But the memory may be written by
somebody who wants it, to get bytes of his own into another process of the tree. A fast hash with a secret seed is not
enough against that: pairs of pages can be made that collide under xxh3-128 for one seed in 65, whatever it is. So each
page goes through AES first, block by block, with a key drawn for the session that never leaves this program: what
differs, differs in a way that cannot be chosen, and xxh3-128 sees nothing but random blocks. Digests are not sent.

AES and xxh3 take 1.1 us of CPU for a page (0.3 s/GiB), in the list comprehension below, the one place where Python runs
for each page. xxh3 alone would take 0.35 us, GMAC 2.7 us, SHA-256 4.1 us, BLAKE2b 7.7 us (scripts/page-cost).
"""

import secrets

import numpy
import xxhash
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from imgwire.messages import PAGE

#: Bytes of an AES key, and of its blocks.
_KEY, _BLOCK = 16, 16

Digests = NDArray[numpy.uint64]  #: a row of two halves for each page


class PageDigest:
    """Digests of one session's pages. Not for two threads at once. `limit`: most bytes at a time."""

    def __init__(self, limit: int) -> None:
        cipher = Cipher(algorithms.AES(secrets.token_bytes(_KEY)), modes.ECB())
        self._encryptor = cipher.encryptor()
        self._seed = secrets.randbits(64)
        self._blocks = memoryview(bytearray(limit + _BLOCK - 1))
        self.of_zeroes = self.of(memoryview(bytes(PAGE)))[0]

    def of(self, pages: memoryview) -> Digests:
        """The digests of whole pages."""
        self._encryptor.update_into(pages, self._blocks)
        digest, seed, blocks = xxhash.xxh3_128_digest, self._seed, self._blocks
        raw = b"".join([digest(blocks[at : at + PAGE], seed) for at in range(0, len(pages), PAGE)])
        return numpy.frombuffer(raw, numpy.uint64).reshape(-1, 2)
