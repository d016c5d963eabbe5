"""What frames save."""

import pytest

from tests.transform.popcorn.tables import side, site
from transform.errors import TransformError
from transform.popcorn.sections import Saved

pytestmark = pytest.mark.t0


def test_saved_registers_are_from_the_cfa() -> None:
    one = site(saved=[Saved(3, -8), Saved(15, -48), Saved(6, 0), Saved(16, 8)])
    assert side("x86-64", [one]).saved(one) == [(3, -24), (15, -64)]


@pytest.mark.parametrize(
    ("saved", "reason"),
    [
        (Saved(6, 8), "the caller's frame pointer or pc at 8"),
        (Saved(16, 0), "the caller's frame pointer or pc at 0"),
        (Saved(3, 0), "register 3 saved at 0"),
        (Saved(3, -56), "register 3 saved at -56"),
        (Saved(1, -8), "register 1 saved at -8"),
    ],
)
def test_other_registers_and_places_are_refused(saved: Saved, reason: str) -> None:
    one = site(saved=[saved])
    with pytest.raises(TransformError, match=reason):
        side("x86-64", [one]).saved(one)
