"""Which of CRIU's options a user may give for a migration, to which side each goes, and why the others are
refused.

One list of options comes from the command line; `split` parts it into what `criu dump` and `criu restore`
take, before anything is frozen. The restore's part then travels to the destination, which trusts nobody and
checks it again with `check_restore`: its list is what is allowed, everything else is refused. Both return or
expect CRIU's own spelling; `split` writes each option as one `--name=value` word, so that no value can be
mistaken for an option. Abbreviations, which getopt would accept, are refused: what they mean depends on
CRIU's release. Source: `criu --help` and criu(8) of 4.2.
"""

from collections.abc import Iterator, Sequence
from enum import Enum, Flag, auto
from typing import NamedTuple

from imgwire.errors import UsageError


class Side(Flag):
    """Which of the two commands takes an option."""

    DUMP = auto()
    RESTORE = auto()
    BOTH = DUMP | RESTORE


class Value(Enum):
    """Whether an option has a value; an optional one must be joined to it, as getopt_long(3) wants it."""

    NONE = auto()
    REQUIRED = auto()
    OPTIONAL = auto()


class Option(NamedTuple):
    """An option that may be given."""

    side: Side
    value: Value = Value.NONE
    negatable: bool = False
    """Whether --no-NAME turns it off again."""


class CriuOptions(NamedTuple):
    """The options for each side, one word each."""

    dump: tuple[str, ...]
    restore: tuple[str, ...]


def _flag(side: Side) -> Option:
    return Option(side, negatable=True)


def _value(side: Side) -> Option:
    return Option(side, Value.REQUIRED)


OPTIONS: dict[str, Option] = {
    "allow-uprobes": _flag(Side.BOTH),
    "cgroup-dump-controller": _value(Side.DUMP),
    "cgroup-props": _value(Side.DUMP),
    "cgroup-props-file": _value(Side.DUMP),
    "cgroup-root": _value(Side.BOTH),
    "cgroup-yard": _value(Side.DUMP),  # a restore writes below it: not for a remote to choose
    "cpu-cap": Option(Side.BOTH, Value.OPTIONAL),
    "deprecated": _flag(Side.BOTH),
    "display-stats": _flag(Side.BOTH),
    "empty-ns": _value(Side.BOTH),
    "enable-external-masters": Option(Side.DUMP),
    "enable-external-sharing": Option(Side.DUMP),
    "enable-fs": _value(Side.BOTH),
    "evasive-devices": _flag(Side.DUMP),
    "ext-unix-sk": Option(Side.BOTH, Value.OPTIONAL),
    "external": _value(Side.BOTH),  # see _external_side
    "file-locks": _flag(Side.BOTH),
    "file-validation": _value(Side.BOTH),
    "force-irmap": _flag(Side.DUMP),
    "freeze-cgroup": _value(Side.DUMP),
    "ghost-fiemap": _flag(Side.DUMP),
    "ghost-limit": _value(Side.DUMP),
    "irmap-scan-path": _value(Side.DUMP),
    "join-ns": _value(Side.RESTORE),
    "lazy-pages": Option(Side.BOTH),
    "libdir": _value(Side.DUMP),  # plugins are code: each node names its own
    "link-remap": _flag(Side.DUMP),
    "lsm-mount-context": _value(Side.RESTORE),
    "lsm-profile": _value(Side.RESTORE),
    "manage-cgroups": Option(Side.BOTH, Value.OPTIONAL),
    "mntns-compat-mode": _flag(Side.RESTORE),
    "network-lock": _value(Side.DUMP),
    "no-default-config": Option(Side.BOTH),
    "root": _value(Side.RESTORE),
    "shell-job": _flag(Side.BOTH),
    "skip-file-rwx-check": _flag(Side.RESTORE),
    "skip-in-flight": _flag(Side.DUMP),
    "skip-mnt": _value(Side.DUMP),
    "tcp-close": _flag(Side.BOTH),
    "tcp-established": _flag(Side.BOTH),
    "timeout": _value(Side.DUMP),
    "unprivileged": _flag(Side.BOTH),
    "veth-pair": _value(Side.RESTORE),
    "weak-sysctls": _flag(Side.RESTORE),
}

#: Of those for a dump, what a pre-dump looks at, too: how it finds, stops and reads the tasks. It ignores most of the
#: others, and ends at some, such as --lazy-pages. Source: criu/cr-dump.c of 4.2 and what its pre-dump calls.
PRE_DUMP = frozenset(
    {
        "allow-uprobes",
        "cpu-cap",
        "deprecated",
        "empty-ns",
        "enable-external-masters",
        "enable-external-sharing",
        "enable-fs",
        "external",
        "force-irmap",
        "freeze-cgroup",
        "irmap-scan-path",
        "libdir",
        "no-default-config",
        "skip-mnt",
        "timeout",
        "unprivileged",
    }
)

_OWNED = "the migration sets this itself: leave it out"
_NOT_HERE = "this is for other commands of CRIU: leave it out"
_PAGES = "pages go through the proxy, not through a page server: leave it out"
_FD = "it names a descriptor of another process: leave it out"

REFUSED: dict[str, str] = {
    "action-script": "the hand-over runs on action scripts of its own: leave it out",
    "address": _PAGES,
    "all": _NOT_HERE,
    "auto-dedup": "CRIU crashes on it when it restores from a stream: leave it out",
    "close": _FD,
    "config": "a file can hold options that are refused here: give each option by itself",
    "daemon": _OWNED,
    "exec-cmd": "it would run a command at the destination: start it there when the migration has ended",
    "experimental": _NOT_HERE,
    "ext-mount-map": "it is the old form of --external mnt: use that",
    "extra": _NOT_HERE,
    "feature": _NOT_HERE,
    "help": _NOT_HERE,
    "images-dir": _OWNED,
    "inherit-fd": _FD,
    "leave-running": "the process would run on both nodes: leave it out",
    "leave-stopped": "the process would stay at the source too: leave it out",
    "log-file": _OWNED,
    "log-pid": _OWNED,
    "ms": _NOT_HERE,
    "page-server": _PAGES,
    "pidfile": _OWNED,
    "port": _PAGES,
    "pre-dump-mode": "there are no pre-dumps in a stream: leave it out",
    "prev-images-dir": "CRIU cannot stream on top of earlier images: leave it out",
    "ps-socket": _PAGES,
    "restore-detached": _OWNED,
    "restore-sibling": _OWNED,
    "status-fd": _FD,
    "stream": _OWNED,
    "tls": "the link has TLS of its own: give the --tls options to this program, not to CRIU",
    "tls-cacert": "the link has TLS of its own: give it to this program, not to CRIU",
    "tls-cacrl": "the link has TLS of its own: leave it out",
    "tls-cert": "the link has TLS of its own: give it to this program, not to CRIU",
    "tls-key": "the link has TLS of its own: give it to this program, not to CRIU",
    "tls-no-cn-verify": "the link has TLS of its own: leave it out",
    "track-mem": "CRIU cannot stream on top of earlier images, so nothing needs tracking: leave it out",
    "tree": _OWNED,
    "verbosity": _OWNED,
    "version": _NOT_HERE,
    "work-dir": _OWNED,
}

SHORT: dict[str, str] = {
    "D": "images-dir",
    "J": "join-ns",
    "L": "libdir",
    "M": "ext-mount-map",
    "R": "leave-running",
    "S": "restore-sibling",
    "V": "version",
    "W": "work-dir",
    "d": "restore-detached",
    "h": "help",
    "j": "shell-job",
    "l": "file-locks",
    "o": "log-file",
    "r": "root",
    "s": "leave-stopped",
    "t": "tree",
    "v": "verbosity",
    "x": "ext-unix-sk",
}


class _Given(NamedTuple):
    """One option as the user gave it: `name` with any no-, `word` as CRIU is to get it."""

    option: Option
    name: str
    value: str | None

    @property
    def word(self) -> str:
        return f"--{self.name}" if self.value is None else f"--{self.name}={self.value}"


def values_of(words: Sequence[str], name: str) -> list[str]:
    """What a CRIU with this command line was given for the option `name`, such as `tree`: `-t 5`, `-t5`, `--tree 5`
    or `--tree=5`. Of any version: what is not known here is passed over."""
    letters = [f"-{letter}" for letter, long in SHORT.items() if long == name]
    found: list[str] = []
    for index, word in enumerate(words):
        if word in (*letters, f"--{name}"):
            found += words[index + 1 : index + 2]
        elif word.startswith(f"--{name}="):
            found.append(word.partition("=")[2])
        elif word[:2] in letters:
            found.append(word[2:])
    return found


def split(options: Sequence[str], *, lazy_pages: bool = False) -> CriuOptions:
    """Part a user's CRIU options into those of each side, in order. UsageError names the first that cannot
    be, and why.

    `lazy_pages` says that the caller does a post-copy migration: only then is --lazy-pages taken.
    """
    given = list(_parse(options, lazy_pages=lazy_pages))
    return CriuOptions(
        tuple(one.word for one in given if Side.DUMP in _side(one)),
        tuple(one.word for one in given if Side.RESTORE in _side(one)),
    )


def for_pre_dump(words: Sequence[str]) -> tuple[str, ...]:
    """Those of a dump's options, as `split` gives them, that a pre-dump before it is to have."""
    names = ((word, word.removeprefix("--").partition("=")[0]) for word in words)
    return tuple(word for word, name in names if {name, name.removeprefix("no-")} & PRE_DUMP)


def check_restore(options: Sequence[str], *, lazy_pages: bool = False) -> None:
    """At the destination: refuse with UsageError what a remote may not ask a restore for.

    What passes names no file to write, runs no command and is an option of `criu restore` that is known here.
    """
    for one in _parse(options, lazy_pages=lazy_pages):
        if Side.RESTORE not in _side(one):
            raise _refusal(one.name, "it is no option of a restore that a remote may set: leave it out")


def _parse(options: Sequence[str], *, lazy_pages: bool) -> Iterator[_Given]:
    words = iter(options)
    for word in words:
        if "\0" in word:
            raise UsageError(f"CRIU option {word!r}: it holds a NUL character: leave that out")
        if word.startswith("--") and len(word) > 2:
            yield _long(word[2:], words, lazy_pages=lazy_pages)
        elif word.startswith("-") and word != "--" and len(word) > 1:
            yield from _cluster(word[1:], words)
        else:
            raise UsageError(f"CRIU option {word!r}: this is no option: every option starts with - or --")


def _long(text: str, words: Iterator[str], *, lazy_pages: bool) -> _Given:
    name, equals, joined = text.partition("=")
    if name == "lazy-pages" and not lazy_pages:
        raise _refusal(name, "pages are only fetched later in a post-copy migration: leave it out")
    option = _lookup(name)
    if equals and option.value is Value.NONE:
        raise _refusal(name, "it takes no value: leave out what follows the =")
    if equals:
        return _Given(option, name, joined)
    return _Given(option, name, _next(name, words) if option.value is Value.REQUIRED else None)


def _cluster(letters: str, words: Iterator[str]) -> Iterator[_Given]:
    """Short options, several in one word perhaps: the first that takes a value takes the rest of the word."""
    if letters.isdigit():  # of -v4: the -v is a program's own
        raise UsageError(f"CRIU option -v{letters}: {_OWNED}")
    for index, letter in enumerate(letters):
        if letter not in SHORT:
            raise UsageError(f"CRIU option -{letter}: not known: see criu --help, and write it as it stands there")
        name, rest = SHORT[letter], letters[index + 1 :]
        option = _lookup(name, f"-{letter}")
        if option.value is Value.NONE:
            yield _Given(option, name, None)
            continue
        required = option.value is Value.REQUIRED
        yield _Given(option, name, rest or (_next(name, words) if required else None))
        return


def _lookup(name: str, shown: str | None = None) -> Option:
    """The option of this name, negated perhaps; UsageError if it is refused or unknown."""
    base = name.removeprefix("no-") if name not in OPTIONS else name
    if base in REFUSED:
        raise _refusal(name, REFUSED[base], shown)
    if base not in OPTIONS or (base != name and not OPTIONS[base].negatable):
        raise _refusal(name, "not known: see criu --help, and write it in full", shown)
    return OPTIONS[base]


def _next(name: str, words: Iterator[str]) -> str:
    word = next(words, None)
    if word is None or "\0" in word:
        raise _refusal(name, "its value is missing: give one")
    return word


def _refusal(name: str, reason: str, shown: str | None = None) -> UsageError:
    return UsageError(f"CRIU option {shown or f'--{name}'}: {reason}")


def _side(given: _Given) -> Side:
    if given.name == "external" and given.value is not None:
        return _external_side(given.value)
    return given.option.side


def _external_side(resource: str) -> Side:
    """Where an --external belongs: most kinds have one form on a dump and another on a restore."""
    kind, _, rest = resource.partition("[")
    key = rest.partition("]")[0]
    match kind:
        case "tty" | "file" | "unix" | "net" | "pid":
            return Side.DUMP
        case "veth" | "macvlan" | "netdev":
            return Side.RESTORE
        case "mnt" if key:
            return Side.DUMP if key.startswith("/") else Side.RESTORE
        case "dev":
            return Side.DUMP if "/" in key else Side.RESTORE
    return Side.BOTH
