"""What the tests with two nodes share."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.nodes import Node, Nodes, open_nodes
from tests.programs import Programs


@pytest.fixture
async def nodes(programs: Programs, make_node_dir: Callable[[], Path]) -> AsyncIterator[Nodes]:
    """Makes nodes, and kills all that runs on them when the test is over."""
    async with open_nodes(programs, make_node_dir) as opened:
        yield opened


@pytest.fixture
async def a(nodes: Nodes) -> Node:
    """The node where the process starts."""
    return await nodes.make()


@pytest.fixture
async def b(nodes: Nodes) -> Node:
    """The node that it goes to."""
    return await nodes.make()
