"""Which CRIU options go where, and which are refused."""

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgnode import criu_options
from imgnode.criu_options import (
    OPTIONS,
    PRE_DUMP,
    REFUSED,
    SHORT,
    CriuOptions,
    Side,
    check_restore,
    for_pre_dump,
    split,
    values_of,
)
from imgwire.errors import UsageError

pytestmark = pytest.mark.t0


@pytest.mark.parametrize(
    ("given_", "dump", "restore"),
    [
        ([], [], []),
        (["--shell-job"], ["--shell-job"], ["--shell-job"]),
        (["-j", "-l"], ["--shell-job", "--file-locks"], ["--shell-job", "--file-locks"]),
        (["-jl"], ["--shell-job", "--file-locks"], ["--shell-job", "--file-locks"]),
        (["--ghost-limit", "4M"], ["--ghost-limit=4M"], []),
        (["--ghost-limit=4M"], ["--ghost-limit=4M"], []),
        (["-r", "/new"], [], ["--root=/new"]),
        (["-r/new"], [], ["--root=/new"]),
        (["-jr", "/new"], ["--shell-job"], ["--shell-job", "--root=/new"]),
        (["--lsm-profile", "apparmor:a=b"], [], ["--lsm-profile=apparmor:a=b"]),
        (["--cpu-cap"], ["--cpu-cap"], ["--cpu-cap"]),
        (["--cpu-cap=none"], ["--cpu-cap=none"], ["--cpu-cap=none"]),
        (["--no-tcp-close"], ["--no-tcp-close"], ["--no-tcp-close"]),
        (["--no-default-config"], ["--no-default-config"], ["--no-default-config"]),
        (["-x12"], ["--ext-unix-sk=12"], ["--ext-unix-sk=12"]),
        (["--mntns-compat-mode"], [], ["--mntns-compat-mode"]),
        # a value that looks like an option stays a value
        (["--root", "--action-script=/x"], [], ["--root=--action-script=/x"]),
        (["--external", "mnt[/data]:d"], ["--external=mnt[/data]:d"], []),
        (["--external", "mnt[d]:/data"], [], ["--external=mnt[d]:/data"]),
        (["--external", "mnt[]:sm"], ["--external=mnt[]:sm"], ["--external=mnt[]:sm"]),
        (["--external", "dev[8/1]:disk"], ["--external=dev[8/1]:disk"], []),
        (["--external", "dev[disk]:/dev/sda1"], [], ["--external=dev[disk]:/dev/sda1"]),
        (["--external", "tty[1:2]"], ["--external=tty[1:2]"], []),
        (["--external", "veth[eth0]:v0@br0"], [], ["--external=veth[eth0]:v0@br0"]),
    ],
)
def test_split(given_: Sequence[str], dump: Sequence[str], restore: Sequence[str]) -> None:
    assert split(given_) == CriuOptions(tuple(dump), tuple(restore))


@pytest.mark.parametrize(
    ("given_", "reason"),
    [
        (["--stream"], "--stream: the migration sets this itself"),
        (["-D", "/x"], "-D: the migration sets this itself"),
        (["--images-dir=/x"], "--images-dir: the migration sets"),
        (["-jt5"], "-t: the migration sets"),
        (["-vvv"], "-v: the migration sets"),
        (["-4"], "-v4: the migration sets"),
        (["-R"], "-R: the process would run on both nodes"),
        (["--auto-dedup"], "CRIU crashes on it"),
        (["--lazy-pages"], "post-copy"),
        (["--prev-images-dir=.."], "cannot stream on top of earlier images"),
        (["--track-mem"], "nothing needs tracking"),
        (["--page-server"], "not through a page server"),
        (["--action-script", "/x"], "hand-over"),
        (["--exec-cmd"], "run a command"),
        (["--tls"], "TLS of its own"),
        (["--frobnicate"], "--frobnicate: not known"),
        (["--shell"], "--shell: not known"),
        (["--no-root"], "--no-root: not known"),
        (["--no-stream"], "--no-stream: the migration sets"),
        (["-q"], "-q: not known"),
        (["--shell-job=1"], "takes no value"),
        (["--root"], "its value is missing"),
        (["-r"], "its value is missing"),
        (["dump"], "'dump': this is no option"),
        (["--"], "no option"),
        (["-"], "no option"),
        ([""], "no option"),
        (["--root=a\0b"], "NUL"),
        (["--root", "a\0b"], "value is missing"),
    ],
)
def test_refusals(given_: Sequence[str], reason: str) -> None:
    with pytest.raises(UsageError, match=re.escape(reason)) as caught:
        split(given_)
    assert "\n" not in str(caught.value)


def test_lazy_pages_when_asked() -> None:
    assert split(["--lazy-pages"], lazy_pages=True) == (("--lazy-pages",), ("--lazy-pages",))
    check_restore(["--lazy-pages"], lazy_pages=True)
    with pytest.raises(UsageError, match="lazy-pages"):
        check_restore(["--lazy-pages"])


@pytest.mark.parametrize(
    "option",
    [
        "--action-script=/bin/sh",
        "--exec-cmd",
        "--pidfile=/etc/passwd",
        "--log-file=/etc/passwd",
        "-o/etc/passwd",
        "--work-dir=/etc",
        "--images-dir=/etc",
        "--log-pid",
        "--config=/x",
        "--libdir=/tmp/plugins",
        "-L/tmp/plugins",
        "--cgroup-yard=/etc",
        "--inherit-fd=fd[3]:x",
        "--status-fd=3",
        "--ghost-limit=1",
        "--external=tty[1:2]",
        "--action-scrip=/bin/sh",
        "--unknown",
        "word",
    ],
)
def test_what_a_remote_may_not_ask(option: str) -> None:
    with pytest.raises(UsageError):
        check_restore([option])
    with pytest.raises(UsageError):
        check_restore(["--shell-job", option])


@pytest.mark.parametrize(
    ("words", "name", "found"),
    [
        (["criu", "dump", "-t", "5"], "tree", ["5"]),
        (["criu", "dump", "-t5"], "tree", ["5"]),
        (["criu", "dump", "--tree", "5"], "tree", ["5"]),
        (["criu", "dump", "--tree=5"], "tree", ["5"]),
        (["criu", "dump", "-D", "a", "--images-dir=b", "-Dc", "--images-dir", "d"], "images-dir", ["a", "b", "c", "d"]),
        (["criu", "dump", "--track-mem", "--tree-x=7"], "tree", []),
        (["criu", "dump", "-t"], "tree", []),
        (["criu", "restore", "--action-script", "/x/hook", "--remote"], "action-script", ["/x/hook"]),
        (["criu", "restore", "-D", ""], "images-dir", [""]),
        ([], "tree", []),
    ],
)
def test_what_a_criu_was_given_for_an_option(words: list[str], name: str, found: list[str]) -> None:
    assert values_of(words, name) == found


def test_tables_agree() -> None:
    assert not OPTIONS.keys() & REFUSED.keys()
    assert set(SHORT.values()) <= OPTIONS.keys() | REFUSED.keys()
    assert all(": " in reason for reason in REFUSED.values())


WORDS = st.lists(
    st.one_of(
        st.sampled_from([f"--{name}" for name in (*OPTIONS, *REFUSED)]),
        st.sampled_from([f"--{name}=v" for name in (*OPTIONS, *REFUSED)]),
        st.sampled_from([f"-{letter}" for letter in SHORT]),
        st.text(max_size=8),
    ),
    max_size=6,
)


@given(WORDS)
def test_any_words_give_options_that_pass_again_or_a_usage_error(words: list[str]) -> None:
    try:
        found = split(words)
    except UsageError:
        return
    check_restore(found.restore)
    assert split(found.dump).dump == found.dump
    assert split(found.restore).restore == found.restore
    for word in (*found.dump, *found.restore):
        name = word.removeprefix("--").partition("=")[0]
        assert name in OPTIONS or name.removeprefix("no-") in OPTIONS
        assert name not in criu_options.REFUSED


def test_what_goes_to_pre_dumps() -> None:
    given = ["--timeout", "5", "-j", "--file-locks", "--external", "mnt[/a]:b", "--no-force-irmap", "--lazy-pages"]
    dump = split(given, lazy_pages=True).dump
    assert for_pre_dump(dump) == ("--timeout=5", "--external=mnt[/a]:b", "--no-force-irmap")


def test_pre_dump_options_are_a_dump_s() -> None:
    assert all(Side.DUMP in OPTIONS[name].side for name in PRE_DUMP)
