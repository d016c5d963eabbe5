"""Options: what the documents name exists, what exists is in the documents; links lead somewhere."""

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from imgcache.cli import app as cache_app
from imgnode.criu_options import OPTIONS, REFUSED
from imgproxy.cli import app as proxy_app
from tests.docs.pages import ROOT, Block, blocks, documents, prose
from tests.nodes import BIN

pytestmark = pytest.mark.t1

COMMANDS = {
    "imgproxy": ["migrate", "rounds", "send", "recover", "spawn", "trap", "certs"],
    "imgcache": ["status", "extract", "drop"],
    "imgtransform": [],
    "criu-image-streamer": [],
}
APPS: dict[str, typer.Typer] = {"imgproxy": proxy_app, "imgcache": cache_app}

_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
_CODE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\]\(([^)]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)

#: Where unit files have the programs.
_INSTALLED = "/usr/local/bin/"
#: Shown as an example of what is refused.
_REFUSED = "--leave-running"

PAGES = documents()
each_page = pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """Every command of ours with the long options in its help."""
    known = {command: _help(*command.split()) for command in _all_commands()}
    shown = subprocess.run([ROOT / "scripts/demo", "--help"], capture_output=True, text=True, check=True).stdout
    known["scripts/demo"] = set(_OPTION.findall(shown))
    bench = (ROOT / "scripts/benchmarks/__main__.py").read_text()
    known["scripts/bench"] = set(re.findall(r'add_argument\("(--[a-z]+)"', bench))
    return known


def _all_commands() -> list[str]:
    return [*COMMANDS, *(f"{name} {one}" for name, several in COMMANDS.items() for one in several), "imgtransform show"]


def _help(name: str, *words: str) -> set[str]:
    if name not in APPS:  # they have forms that are not typer's
        done = subprocess.run([BIN / name, *words, "--help"], capture_output=True, text=True, check=True)
        return set(_OPTION.findall(done.stdout))
    done_here = CliRunner().invoke(APPS[name], [*words, "--help"], env={"COLUMNS": "240", "TERM": "dumb"})
    assert done_here.exit_code == 0, done_here.output
    return set(_OPTION.findall(done_here.output))


@each_page
def test_options_in_commands_exist(page: Path, options: dict[str, set[str]]) -> None:
    wrong = [
        f"{page.name}:{block.line}: {command} has no {option}"
        for block in blocks(page)
        for command, given in _calls(block)
        for option in given
        if option not in options[command]
    ]
    assert not wrong


def _calls(block: Block) -> list[tuple[str, list[str]]]:
    """Our commands in a block, each with its options; those of criu and of other programs are left out."""
    text = "\n".join(block.lines).replace("\\\n", " ")
    calls = []
    for part in re.split(r"\n|;|\||&&", text):
        words = part.removeprefix("ExecStart=").split()
        start = next((n for n, word in enumerate(words) if word.removeprefix(_INSTALLED) in COMMANDS), None)
        if start is not None:
            name, *rest = words[start:]
            name = name.removeprefix(_INSTALLED)
            command = f"{name} {rest[0]}" if rest and f"{name} {rest[0]}" in _all_commands() else name
            given = [found[0] for word in rest if (found := _OPTION.match(word)) and word != _REFUSED]
            calls.append((command, given))
    return calls


@each_page
def test_options_in_prose_exist(page: Path, options: dict[str, set[str]]) -> None:
    known = set().union(*options.values()) | {f"--{name}" for name in (*OPTIONS, *REFUSED)}
    named = {option for code in _CODE.findall(prose(page)) for option in _OPTION.findall(code)}
    assert not named - known


def test_every_option_is_in_the_documents(options: dict[str, set[str]]) -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    named = set(_OPTION.findall(text))
    missing = {command: left for command, has in options.items() if (left := has - named - {"--help"})}
    assert not missing


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for target in _LINK.findall(prose(page)):
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        if not place.exists() or (anchor and anchor not in _anchors(place)):
            wrong.append(target)
    assert not wrong


def _anchors(page: Path) -> set[str]:
    titles = (re.sub(r"[`.,?:()']", "", title).strip().lower() for title in _HEADING.findall(page.read_text()))
    return {title.replace(" ", "-") for title in titles}


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {(ROOT / target.partition("#")[0]).resolve() for target in _LINK.findall((ROOT / "README.md").read_text())}
    assert linked.issuperset(PAGES[1:])


UNITS = [block for page in PAGES for block in blocks(page) if block.tag == "ini"]


@pytest.mark.parametrize("block", UNITS, ids=[f"{block.page.stem}-{block.line}" for block in UNITS])
def test_a_unit(block: Block, tmp_path: Path) -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.read_string("\n".join(block.lines))
    assert "Unit" in unit
    assert {"Service", "Socket"} & set(unit)
    command = unit.get("Service", "ExecStart", fallback="")
    if command:
        name = shlex.split(command)[0].removeprefix(_INSTALLED)
        assert (BIN / name).exists()
        assert [options for _, options in _calls(block) if options], "its options are checked with all others"
    _verify(block, tmp_path)


def _verify(block: Block, directory: Path) -> None:
    """By systemd itself, where there is one."""
    if analyze := shutil.which("systemd-analyze"):
        kind = "socket" if "[Socket]" in block.lines else "service"
        text = "\n".join(block.lines).replace("/usr/local/bin/", f"{BIN}/") + "\n"
        (directory / f"imgcache.{kind}").write_text(text)
        if kind == "socket":
            (directory / "imgcache.service").write_text(f"[Service]\nExecStart={BIN}/imgcache\n")
        done = subprocess.run(
            [analyze, "verify", directory / f"imgcache.{kind}"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
