"""What the caller is told."""

import json
import os

import pytest

from criu_image_streamer.progress import Progress, ShardFigures
from imgwire.errors import UsageError

pytestmark = pytest.mark.t1


def test_lines_and_figures() -> None:
    reader, writer = os.pipe()
    progress = Progress(writer)
    progress.say("socket-init")
    progress.figures([ShardFigures(5, 1.5), ShardFigures(0, 0.0)])
    os.close(writer)
    with os.fdopen(reader) as lines:
        assert lines.readline() == "socket-init\n"
        assert json.loads(lines.readline()) == {
            "shards": [{"size": 5, "transfer_duration_millis": 1500}, {"size": 0, "transfer_duration_millis": 0}]
        }
        assert not lines.read()


def test_nobody_listens() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    Progress(writer).say("socket-init")
    os.close(writer)


def test_a_descriptor_that_is_not_open() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    with pytest.raises(UsageError, match=f"--progress-fd {writer}: Bad file descriptor"):
        Progress(writer)
