"""CRIU's own test suite, with our page server in place of CRIU's: pre-dumps, and dumps that leave the process running.

Each test is a program that has its say of what it finds after its restore: of memory that was mapped, unmapped, grown,
shared, inherited, written by threads or while it was dumped. What continuous integration runs is a sample. All that
this kernel and these programs can do, in hours:

    IMGPROXY_ZDTM=all scripts/test t3 -- tests/testbed/test_zdtm.py

Then those that fail are run with CRIU's own page server, too: they must fail there as well. Names in place of `all`
run those: IMGPROXY_ZDTM=static/maps00,transition/fork.
"""

import os

import pytest

from tests.testbed.guest import Guest, guest
from tests.testbed.machine import Hardware
from tests.testbed.zdtm import suite

pytestmark = pytest.mark.t3

CHOSEN = os.environ.get("IMGPROXY_ZDTM", "")
HARDWARE = Hardware(memory="2G", steady=True)  # a test's memory is there twice, and in the cache
#: Two rounds before the dump; as zdtm.py takes them.
MODES = {"pre-dumps": ("--pre", "2"), "snapshots": ("--pre", "2", "--snaps")}
#: One is dear enough, emulated: memory that children have inherited and changed. Pre-dumps have other tests.
SAMPLE = {"snapshots": ["static/cow01"]}


async def test_memory_of_rounds_is_restored() -> None:
    names = [name for names in SAMPLE.values() for name in names] if not CHOSEN else CHOSEN.split(",")
    built = await suite.build(*names)
    chosen = dict.fromkeys(MODES, built if CHOSEN == "all" else names) if CHOSEN else SAMPLE
    async with guest("amd64", HARDWARE) as vm:
        await suite.prepare(vm)
        wrong = [one for mode, tests in chosen.items() for one in await run(vm, tests, mode)]
        assert not wrong, "\n".join(one.output for one in wrong)


async def run(vm: Guest, tests: list[str], mode: str) -> list[suite.Verdict]:
    """Those that fail, although they do not with CRIU's own page server."""
    verdicts = await suite.run(vm, tests, *MODES[mode])
    print(f"{mode}: {told(verdicts)}", flush=True)
    assert any(not one.why for one in verdicts), f"something ran: {verdicts}"
    failed = [one for one in verdicts if one.failed]
    if not failed or not CHOSEN:
        return failed
    theirs = await suite.run(vm, [one.name for one in failed], *MODES[mode], pages="criu")
    print(f"{mode}, those with CRIU's own page server: {told(theirs)}", flush=True)
    known = {one.name for one in theirs if one.failed}
    return [one for one in failed if one.name not in known]


def told(verdicts: list[suite.Verdict]) -> str:
    """Figures, and what did not pass."""
    passed = sum(not one.why for one in verdicts)
    rest = "".join(f"\n    {one.name}: {one.why}" for one in verdicts if one.why)
    return f"{passed} of {len(verdicts)} passed{rest}"
