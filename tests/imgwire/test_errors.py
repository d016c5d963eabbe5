"""The three errors blame different ones, so nobody catches one for another."""

import pytest

from imgwire.errors import LocalProtocolError, RemoteProtocolError, UsageError

pytestmark = pytest.mark.t0


@pytest.mark.parametrize("error", [LocalProtocolError, RemoteProtocolError, UsageError])
def test_no_error_is_a_kind_of_another(error: type[Exception]) -> None:
    others = {LocalProtocolError, RemoteProtocolError, UsageError} - {error}
    assert not any(issubclass(error, other) for other in others)
    assert not issubclass(error, OSError | ValueError)
    assert str(error("what, where")) == "what, where"
