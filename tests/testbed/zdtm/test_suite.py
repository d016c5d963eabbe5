"""What zdtm.py says of its tests is understood, also when it says nothing."""

import pytest

from tests.testbed.zdtm.suite import verdicts

pytestmark = pytest.mark.t0

OUTPUT = """
Skipping zdtm/static/aio00 (no aio feature)
=========================== Run zdtm/static/maps00 in h ===========================
Run criu pre-dump
========================= Test zdtm/static/maps00 PASS =========================
========================= Run zdtm/static/env00+ in h ==========================
the memory is wrong
############### Test zdtm/static/env00+ FAIL at result check ################
Test zdtm/static/pipe00
"""


def test_each_has_its_verdict() -> None:
    names = ["static/maps00", "static/env00+", "static/aio00", "static/pipe00"]
    passed, failed, skipped, lost = verdicts(names, OUTPUT)
    assert (passed.why, passed.failed) == ("", False)
    assert (failed.why, failed.failed) == ("FAIL at result check", True)
    assert "the memory is wrong" in failed.output and "pre-dump" not in failed.output
    assert (skipped.why, skipped.failed) == ("no aio feature", False)
    assert lost.failed and lost.output == OUTPUT


def test_no_test_has_a_verdict_if_zdtm_dies() -> None:
    assert [one.failed for one in verdicts(["static/maps00"], "Traceback")] == [True]
