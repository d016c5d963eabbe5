"""Each error is a TransformError and one line for a user."""

import pytest

from transform.errors import AddressError, ImageError, OptionError, TransformError

pytestmark = pytest.mark.t0


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OptionError("write OLD:NEW"), "write OLD:NEW"),
        (ImageError("files.img", 12, "cut"), "files.img: byte 12: cut"),
        (AddressError(7, 0x1000, "not mapped"), "memory of task 7 at 0x1000: not mapped"),
    ],
)
def test_an_error_says_what_and_where(error: TransformError, line: str) -> None:
    assert isinstance(error, TransformError) and str(error) == line
