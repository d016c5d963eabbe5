"""The chain over an images directory: what `imgtransform DIR_IN DIR_OUT` does.

The output is made in a directory beside DIR_OUT and renamed to it as the last step, so that DIR_OUT is whole or not
there. Images that no transform wants, the pages above all, are copied by the kernel (shared extents where the file
system can): never linked, since patching the copy's pages must not reach the original.
"""

import errno
import os
import shutil
import tempfile
from pathlib import Path

from transform.chain import COLLECTED_LIMIT, Chain
from transform.directory_store import DirectoryStore
from transform.errors import OptionError, TransformError

_NO_COPY_RANGE = {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
"""What copy_file_range(2) answers between file systems that cannot do it."""
COPY_CHUNK = 2**30
"""Bytes asked for in one call; the kernel stops at 2 GiB."""


def transform_directory(source: Path, target: Path, chain: Chain) -> None:
    """Write to `target` what `chain` makes of the images in `source`.

    `OptionError` when the directories do not fit, `TransformError` when the images do not, `OSError` with a path when
    the file system fails; in each case `target` is left as it was.
    """
    _check(source, target)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.absolute().parent))
    try:
        _fill(source, partial, chain)
        partial.chmod(source.stat().st_mode & 0o777)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial)
        raise


def _check(source: Path, target: Path) -> None:
    if not source.is_dir():
        raise OptionError(f"{source}: not a directory; give the directory of a dump's images")
    if not any(source.glob("*.img")):
        raise OptionError(f"{source}: no images (*.img) in it")
    if (source / "parent").is_symlink():
        raise OptionError(f"{source}: has a parent dump, on which its pages depend; give a full dump")
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise OptionError(f"{target}: exists and is not an empty directory; give a new one")
    if not target.absolute().parent.is_dir():
        raise OptionError(f"{target}: the directory above does not exist; make it first")


def _fill(source: Path, partial: Path, chain: Chain) -> None:
    for path in sorted(source.iterdir()):
        if path.is_file() and not path.is_symlink():
            _one(path, partial / path.name, chain)
    for name, data in chain.finish(DirectoryStore(partial)).items():
        if Path(name).name != name:
            raise TransformError(f"{name}: not a name for an image")
        (partial / name).write_bytes(data)


def _one(path: Path, copy: Path, chain: Chain) -> None:
    if not chain.wants(path.name):
        _copy(path, copy)
        return
    if path.stat().st_size > COLLECTED_LIMIT:
        raise TransformError(f"{path}: {path.stat().st_size} bytes; a transform takes {COLLECTED_LIMIT} at most")
    data = chain.transform(path.name, path.read_bytes())
    if data is not None:
        copy.write_bytes(data)
        shutil.copymode(path, copy)


def _copy(path: Path, copy: Path) -> None:
    """A copy that shares no page of the file with the original when written to, and does not pass through here."""
    try:
        with path.open("rb") as source, copy.open("xb") as target:
            while os.copy_file_range(source.fileno(), target.fileno(), COPY_CHUNK):
                pass
    except OSError as error:
        if error.errno not in _NO_COPY_RANGE:
            raise
        shutil.copyfile(path, copy)
    shutil.copymode(path, copy)
