"""The command line: what callers of the command of that name pass today."""

from pathlib import Path

import pytest

from criu_image_streamer.cli import Options, parse, run

pytestmark = pytest.mark.t0


def test_capture_goes_to_stdout() -> None:
    assert parse(["-D", "d", "capture"]) == Options("capture", Path("d"), (1,), {}, 2, ())


@pytest.mark.parametrize("operation", ["serve", "extract"])
def test_the_others_read_stdin(operation: str) -> None:
    assert parse(["--images-dir=d", operation]).shard_fds == (0,)


@pytest.mark.parametrize(
    "arguments",
    [
        ["-D", "d", "-s", "10,11", "-e", "a.tar:20,b:21", "-p", "3", "--tcp-listen-remap", "80:81,90:91", "serve"],
        ["serve", "-Dd", "-s10,11", "-ea.tar:20,b:21", "-p3", "--tcp-listen-remap=80:81,90:91"],
        [
            *[
                "-p",
                "3",
                "--images-dir",
                "d",
                "-s",
                "10",
                "serve",
                "-s",
                "11",
                "-e",
                "a.tar:20",
                "-e",
                "b:21",
                "--tcp-listen-remap",
                "80:81,90:91",
            ]
        ],
    ],
)
def test_options_in_any_place_and_form(arguments: list[str]) -> None:
    expected = Options("serve", Path("d"), (10, 11), {"a.tar": 20, "b": 21}, 3, ("80:81,90:91",))
    assert parse(arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["capture"], "--images-dir"),
        (["-D", "d"], "operation"),
        (["-D", "d", "dump"], "dump"),
        (["-D", "d", "-s", "x", "capture"], "--shard-fds x: write the number of an open descriptor"),
        (["-D", "d", "-s", "-1", "capture"], "--shard-fds"),
        (["-D", "d", "-s", "5,5", "capture"], "descriptor 5 is given for two purposes"),
        (["-D", "d", "-e", "a:1", "capture"], "descriptor 1 is given for two purposes"),
        (["-D", "d", "-e", "a", "capture"], "--ext-file-fds a: write NAME:FD"),
        (["-D", "d", "-e", "../a:9", "capture"], "'../a'"),
        (["-D", "d", "-e", "a:b:9", "capture"], "--ext-file-fds b:9"),
        (["-D", "d", "-p", "two", "capture"], "--progress-fd two"),
        (["-D", "d", "--tcp-listen-remap", "1:2", "capture"], "only serve"),
    ],
)
def test_wrong_ones_are_refused_in_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1 and told.startswith("criu-image-streamer: ")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("criu-image-streamer ")
