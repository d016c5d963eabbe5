"""zdtm.py in a guest: which tests it has, how it is run there, and what it says of each."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.testbed.guest import PLACES, ROOT, Guest
from tests.testbed.zdtm import criu, programs

BUILT = PLACES.cache / "zdtm/suite"
SUITE = f"{criu.PLACE}/suite"
HERE = Path(__file__).parent
#: Seconds for one test, and for a program of the project to start; emulated, where others work, too.
PATIENCE = 600.0

_VERDICT = re.compile(
    r"^#* *=* *Test zdtm/(?P<name>\S+) (?P<said>PASS|FAIL at .*?) *[=#]*$"
    r"|^Skipping zdtm/(?P<passed_over>\S+) \((?P<skipped>.*)\)$",
    re.MULTILINE,
)

#: In place of `criu`: what needs no Python goes without, and what this kernel can do is asked once.
CRIU = f"""#!/bin/sh
case $1 in
page-server | pre-dump | dump | restore) exec python3 -S {HERE}/criu.py "$@" ;;
check | --version) ;;
*) exec {criu.CRIU} "$@" ;;
esac
known={criu.PLACE}/known-$(echo "$*" | tr -c "a-z0-9_\\n" -)
[ -e "$known" ] || {{ {criu.CRIU} "$@" >"$known.out" 2>"$known.err"; echo $? >"$known"; }}
cat "$known.out"; cat "$known.err" >&2; exit "$(cat "$known")"
"""
#: In place of zdtm.py, which starts again for each test, and takes a second of emulated time only to be compiled.
ZDTM = f"""#!/usr/bin/python3 -S
import marshal
exec(marshal.loads(open("{SUITE}/zdtm.pyc", "rb").read()[16:]))
"""
#: A directory that guests have read-only, and here with more in it.
COMMANDS = "/usr/local/bin"
#: How long zdtm waits for CRIU, for its programs, and CRIU for tasks to stop: ten times longer.
PATIENT = 's/timeout=60)/timeout=600)/; s/ or 30)/ or 300)/; s/"--timeout", "10"/"--timeout", "100"/'
PREPARE = f"""
mkdir {criu.PLACE} && mkdir -m 700 {criu.CACHE} && cp -a {BUILT} {SUITE} &&
cp -a {COMMANDS} {criu.PLACE}/bin && mount --bind {criu.PLACE}/bin {COMMANDS} &&
cp {HERE}/make {COMMANDS} && chmod 755 {COMMANDS}/make &&
sed -i '{PATIENT}' {SUITE}/zdtm.py &&
python3 -S -c 'import py_compile; py_compile.compile("{SUITE}/zdtm.py", "{SUITE}/zdtm.pyc", doraise=True)'
"""


@dataclass(frozen=True)
class Verdict:
    """What zdtm says of one test; `why` it did not pass: "" if it did."""

    name: str
    why: str
    output: str
    skipped: bool = False

    @property
    def failed(self) -> bool:
        return bool(self.why) and not self.skipped


async def build(*tests: str) -> list[str]:
    """Build these tests, or `all`; the names of all that are built."""
    await trio.run_process([str(ROOT / "scripts/zdtm"), *tests])
    files = sorted(BUILT.glob("zdtm/*/commands"))
    return [f"{file.parent.name}/{line.split()[0][2:]}" for file in files for line in file.read_text().splitlines()]


async def prepare(vm: Guest) -> None:
    """The suite is there, with an imgcache, and all that the stand-ins need."""
    done = await vm.run("sh", "-c", PREPARE, deadline=PATIENCE)
    assert done.code == 0, done.output
    await vm.put(CRIU.encode(), f"{COMMANDS}/criu", 0o755)
    await vm.put(ZDTM.encode(), f"{SUITE}/zdtm.py", 0o755)
    cache = ("-D", criu.CACHE, "--listen", f"unix:{criu.LINK}")
    both = await vm.start("python3", programs.__file__, criu.PROGRAMS, *cache)
    await both.wait_stderr(criu.READY, PATIENCE)


async def run(vm: Guest, tests: Iterable[str], *options: str, pages: str = "imgproxy") -> list[Verdict]:
    """Run tests with these options of zdtm.py; `pages`: whose page server it is, imgproxy's or criu's."""
    names = list(tests)
    words = ["env", f"ZDTM_PAGES={pages}", "./zdtm.py", "run", "-f", "h", "--criu-bin", f"{COMMANDS}/criu"]
    words += ["--ignore-taint", "--keep-going", "-k", "never", "--page-server", *options]
    words += [word for name in names for word in ("-t", f"zdtm/{name}")]
    done = await vm.run(*words, directory=SUITE, deadline=len(names) * PATIENCE)
    return verdicts(names, done.output)


def verdicts(names: list[str], output: str) -> list[Verdict]:
    """What zdtm.py's output says of each of these tests. One of which it says nothing has failed."""
    found: dict[str, Verdict] = {}
    begin = 0
    for one in _VERDICT.finditer(output):
        why = one["skipped"] or ("" if one["said"] == "PASS" else one["said"])
        name = one["passed_over"] or one["name"]
        found[name] = Verdict(name, why, output[begin : one.end()], skipped=bool(one["skipped"]))
        begin = one.end()
    return [found.get(name, Verdict(name, "it comes to no end", output)) for name in names]
