"""scripts/setup-npb, on a little tree of the layout that the NAS Parallel Benchmarks have in C."""

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.toolchain.pairs import output, output_of_both, run

pytestmark = [pytest.mark.t2, pytest.mark.usefixtures("hetcc")]

TOP = "cg:\n\tcd CG; $(MAKE) CLASS=$(CLASS)\nep:\n\tcd EP; $(MAKE) CLASS=$(CLASS)\n"
KERNEL = """\
include ../config/make.def
PROGRAM = $(BINDIR)/{name}.$(CLASS).x
default: params.h ../common/$(RAND).o
	../sys/header
	$(CC) -c $(C_INC) $(CFLAGS) {name}.c
	$(CLINK) $(CLINKFLAGS) -o $(PROGRAM) {name}.o ../common/$(RAND).o $(C_LIB)
params.h: ../sys/params
	../sys/params $(CLASS) > params.h
../sys/params: ../sys/params.c
	$(UCC) -o $@ $<
../common/$(RAND).o: ../common/$(RAND).c
	cd ../common; $(CC) -c $(CFLAGS) $(RAND).c
"""
FILES = {
    "Makefile": TOP,
    "CG/Makefile": KERNEL.format(name="cg"),
    "CG/cg.c": '#include <math.h>\n#include <stdio.h>\n#include "params.h"\n#include "randdp.h"\n'
    'int main(void) { return printf("%c %.3f\\n", CLASS, sqrt(randlc(8))) < 0; }\n',
    "EP/Makefile": KERNEL.format(name="ep"),
    "EP/ep.c": "int main(void) { return missing(); }\n",
    "common/randdp.h": "double randlc(double);\n",
    "common/randdp.c": '#include "randdp.h"\ndouble randlc(double x) { return x / 2; }\n',
    "sys/params.c": "#include <stdio.h>\n"
    "int main(int n, char **v) { return printf(\"#define CLASS '%s'\\n\", v[n - 1]) < 0; }\n",
    "sys/header": "#!/bin/sh\n",
    "common/randdp.o": "of another build",
    "config/make.def": "CC = false\n",
}


def make_tree(place: Path) -> Path:
    """As a checkout may be: with results of another build, and scripts that cannot be run."""
    for name, text in FILES.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    return place


def test_pairs_where_migrations_look_for_them(tmp_path: Path) -> None:
    sources = make_tree(tmp_path / "SNU_NPB" / "NPB3.3-SER-C")
    output(ROOT / "scripts/setup-npb", "-c", "W", "-o", tmp_path / "npb", sources.parent, "cg")
    assert output(tmp_path / "npb/cg") == b"W 2.000\n"
    assert output_of_both(tmp_path / "npb/bin/cg") == b"W 2.000\n"
    assert (sources / "config/make.def").read_text() == "CC = false\n", "the checkout is as it was"
    assert not (sources / "bin").exists()


def test_what_cannot_be_built_is_named_and_the_rest_is_there(tmp_path: Path) -> None:
    done = run(ROOT / "scripts/setup-npb", "-o", tmp_path / "npb", make_tree(tmp_path / "npb-sources"))
    assert done.returncode == 1
    assert b"missing" in done.stderr
    assert done.stderr.endswith(b"setup-npb: not built (output above): ep\n")
    assert (tmp_path / "npb/cg").exists()


@pytest.mark.parametrize(("words", "told"), [([], b"usage: "), (["/"], b"setup-npb: /: no NPB3.3-SER-C there: ")])
def test_refusals(words: list[str], told: bytes) -> None:
    done = run(ROOT / "scripts/setup-npb", *words)
    assert done.returncode != 0
    assert told in done.stderr
