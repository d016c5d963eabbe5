"""The journal: what is written is on disk, what was cut is ignored."""

import json
import os
from pathlib import Path

import pytest

from imgnode.journal import Journal, journals

pytestmark = pytest.mark.t1


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(str(tmp_path), "a1b2")


def test_without_a_file_there_is_nothing(journal: Journal) -> None:
    assert journal.records() == [] and journal.state is None and journal.fact("tree") is None
    journal.remove()


def test_records_are_read_as_they_were_written(journal: Journal) -> None:
    journal.write("opened", name="wéb\n", options=["-v"])
    journal.write("deciding", tree=[[1, 2, "boot"]])
    assert journal.records() == [
        {"state": "opened", "name": "wéb\n", "options": ["-v"]},
        {"state": "deciding", "tree": [[1, 2, "boot"]]},
    ]
    assert journal.state == "deciding"
    assert (journal.fact("name"), journal.fact("tree"), journal.fact("none")) == ("wéb\n", [[1, 2, "boot"]], None)


def test_the_newest_fact_counts(journal: Journal) -> None:
    journal.write("aborted", reason="first")
    journal.write("aborted", reason="second")
    assert journal.fact("reason") == "second"


def test_a_person_can_read_it_and_nobody_else(journal: Journal) -> None:
    journal.write("opened", name="x")
    path = Path(journal.path)
    assert [json.loads(line) for line in path.read_text().splitlines()] == journal.records()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_record_is_on_disk_before_write_returns(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def note(fd: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        real(fd)

    monkeypatch.setattr(os, "fsync", note)
    journal.write("opened")
    journal.write("aborted")
    assert synced == [journal.path, journal.directory, journal.path]


@pytest.mark.parametrize("left", range(1, 20, 6))
def test_a_line_that_a_crash_has_cut_is_ignored(journal: Journal, left: int) -> None:
    journal.write("opened", name="x")
    with Path(journal.path).open("a") as file:
        file.write('{"state":"committed"}'[:left])
    assert journal.state == "opened"
    journal.write("aborted", reason="cut")  # by the program that came after the crash
    assert [record["state"] for record in journal.records()] == ["opened", "aborted"]


def test_removed_is_forgotten(journal: Journal) -> None:
    journal.write("opened")
    journal.remove()
    assert not Path(journal.path).exists() and journal.state is None


def test_those_of_a_directory_are_found_by_name(tmp_path: Path) -> None:
    for name in ("b", "a"):
        Journal(str(tmp_path), name).write("opened")
    (tmp_path / "other.txt").touch()
    assert [journal.session for journal in journals(str(tmp_path))] == ["a", "b"]


def test_what_cannot_be_written_is_an_error_with_its_path(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path / "gone"), "x")
    with pytest.raises(FileNotFoundError) as caught:
        journal.write("opened")
    assert caught.value.filename == journal.path
