"""What a start of the programs loads, and what it does not: the libraries that only some uses need."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.t1

#: What `main` would go on with, left out.
LOADED = """
import sys
from typer import Typer
Typer.__call__ = lambda *_: print(*sorted({name.partition(".")[0] for name in sys.modules}))
from PROGRAM.__main__ import main
main()
"""


@pytest.mark.parametrize("program", ["imgproxy", "imgcache"])
def test_what_is_not_needed_is_not_loaded(program: str) -> None:
    code = LOADED.replace("PROGRAM", program)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"trio", "structlog", "typer", program} <= loaded
    assert not loaded & {"rich", "prometheus_client", "http"}
