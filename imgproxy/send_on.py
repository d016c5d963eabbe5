"""`imgproxy recover` after the death of an imgproxy while memory followed: it takes its place, and sends the rest.

    the tree stopped, journalled -> takes the session over -> told what is lacking -> pages follow -> needed no more

Of what went over the link nothing need be known: the cache begins a channel that is new on both sides, and tells which
pages it lacks. They are read from the stopped processes. Only one may do this at a time, so it holds the journal.
"""

import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
import trio

from imgnode.channel import Channel
from imgnode.journal import Journal
from imgnode.nursery import flat_nursery
from imgproxy.compression import Compression
from imgproxy.dialer import Dialer, Link
from imgproxy.handover import Handover, HandoverPolicy
from imgproxy.post_copy import PostCopy
from imgproxy.recover_stopped import PAUSE, stopped_tree
from imgproxy.sender import ImageSender
from imgproxy.source import CacheView, LinkLost
from imgproxy.stopped_tree import StoppedTree
from imgwire.messages import Hello
from imgwire.states import SessionState
from transform.chain import Chain

#: Seconds for which a cut may last: as long as this program lives, the process there waits.
PATIENCE = float("inf")

_log = structlog.get_logger()


class Busy(Exception):
    """Somebody else is at work on the session."""


@asynccontextmanager
async def alone(journal: Journal, patience: float) -> AsyncIterator[None]:
    """Be the only recovery of that session. Busy if another is still at it after `patience` seconds."""
    give_up_at = trio.current_time() + patience
    try:
        fd = os.open(journal.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # another has just come to its end
        yield
        return
    try:
        while not _locked(fd):
            if trio.current_time() > give_up_at:
                raise Busy("another imgproxy is sending its memory on")
            await trio.sleep(PAUSE)
        yield
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def send_on(journal: Journal, dialer: Dialer) -> SessionState:
    """Send what the destination lacks; the state of the session there after that. CannotConnect, SessionRefused,
    LinkLost."""
    view, channel = CacheView(), Channel(splices=dialer.splices)
    handover = Handover(journal, view, HandoverPolicy(), trio.lowlevel.checkpoint)
    handover.commit()
    sender = ImageSender(channel, Chain(()), Compression("off"))

    async def lost() -> str:
        raise LinkLost(view.lost)

    tree = StoppedTree(view, handover, journal, lost)
    tree.tasks = stopped_tree(journal)
    hello = Hello(journal.session, str(journal.fact("name")), takeover=True)
    link = Link(dialer, channel, hello, view, patience=PATIENCE)
    try:
        async with flat_nursery() as nursery:
            await nursery.start(link.run)
            _log.warning("sending on the memory that is left", session=hello.name)
            await PostCopy(channel, sender, view, handover, tree).go_on()
            await channel.say_bye()
            nursery.cancel_scope.cancel()
    finally:
        channel.close()
    return view.state
