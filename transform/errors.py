"""Errors of the transform layer, by who is at fault.

`OptionError`: an option given to a transform cannot be obeyed. `ImageError`: an image is not what its format
says. `AddressError`: memory was asked for that the dump does not hold. All are `TransformError`, and the
message of each is one line fit for a user.
"""


class TransformError(Exception):
    """A transform cannot do its work; the dump must not be declared complete."""


class OptionError(TransformError):
    """We were asked wrongly: the option, the value and what to give instead are in the message."""


class ImageError(TransformError):
    """An image is malformed, or of a form that we refuse; `offset` is in bytes from its start."""

    def __init__(self, image: str, offset: int, reason: str) -> None:
        super().__init__(f"{image}: byte {offset}: {reason}")
        self.image = image
        self.offset = offset
        self.reason = reason


class AddressError(TransformError):
    """A virtual address of a dumped task that cannot be read or written from its images."""

    def __init__(self, pid: int, address: int, reason: str) -> None:
        super().__init__(f"memory of task {pid} at {address:#x}: {reason}")
        self.pid = pid
        self.address = address
        self.reason = reason
