"""The destination's end of the link: takes connections, greets, and gives them to their sessions."""

from collections.abc import Awaitable, Callable

import structlog
import trio

from imgcache.host import Host
from imgcache.registry import Registry
from imgcache.session import Session
from imgnode.channel import WINDOW
from imgnode.command_line import explain
from imgnode.greeting import receive_greeting
from imgnode.journal import Journal
from imgnode.transport import Transport
from imgwire.errors import RemoteProtocolError, UsageError
from imgwire.link import LinkConnection, Role, common_version
from imgwire.messages import Hello, Refused, Resolve, Resolved, Welcome
from imgwire.states import SessionState

#: Connections that have not said yet who they are.
MAX_GREETING = 64

_log = structlog.get_logger()


async def open_session(hello: Hello, registry: Registry, host: Host, nursery: trio.Nursery) -> Session:
    """A new session that lives in `nursery`. UsageError with the reason, if it cannot be."""
    session = registry.create(hello)
    try:
        await nursery.start(host.run, session)
    except UsageError:
        registry.discard(session)
        raise
    _log.info("session opened", session=session.name, wait_restored=session.wait_restored)
    return session


class LinkServer:
    """Serves connections of any transport."""

    def __init__(
        self,
        registry: Registry,
        host: Host,
        nursery: trio.Nursery,
        facts: Callable[[], Awaitable[dict[str, object]]],
    ) -> None:
        self._registry, self._host, self._nursery, self._facts = registry, host, nursery, facts
        self._greeting = trio.CapacityLimiter(MAX_GREETING)
        self.stopping = False

    async def serve(self, transport: Transport) -> None:
        """Serve one connection until it ends. What the other side does wrong ends only this connection."""
        try:
            await self._serve(transport)
        except RemoteProtocolError as error:
            _log.warning("a connection does not follow the protocol", error=str(error))
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError) as error:
            _log.debug("a connection broke", error=str(error))
        finally:
            with trio.CancelScope(shield=True):
                await transport.aclose()

    async def _serve(self, transport: Transport) -> None:
        connection = LinkConnection(Role.CACHE)
        async with self._greeting:
            greeting = await receive_greeting(transport, connection)
            session = None
            try:
                if isinstance(greeting, Resolve):
                    answer = connection.greet(Resolved(self._resolve(greeting)))
                else:
                    assert isinstance(greeting, Hello)
                    session = await self._open(greeting)
                    answer = connection.greet(await self._welcome(greeting, session))
            except (UsageError, RemoteProtocolError, OSError) as error:
                answer = connection.greet(Refused(explain(error)))
            await transport.send_all(answer)
        if session is not None and isinstance(greeting, Hello):
            await session.attach(transport, connection, greeting.received)

    async def _welcome(self, hello: Hello, session: Session) -> Welcome:
        facts = {} if hello.resume else await self._facts()
        return Welcome(common_version(hello), session.source.channel.received, WINDOW, facts)

    async def _open(self, hello: Hello) -> Session:
        common_version(hello)
        if hello.resume or hello.takeover:
            session = self._resume(hello)
            if hello.takeover:
                await session.take_over()
            return session
        if self.stopping:
            raise UsageError("the cache is stopping")
        return await open_session(hello, self._registry, self._host, self._nursery)

    def _resume(self, hello: Hello) -> Session:
        session = self._registry.get(hello.session)
        if session is None or session.revived:
            raise UsageError("the cache has been restarted: the images that it had are lost")
        if session.state is SessionState.ABORTED:
            raise UsageError(session.reason)
        return session

    def _resolve(self, resolve: Resolve) -> str:
        """Take the source's word on how the session ended there."""
        session = self._registry.get(resolve.session)
        if session is None:
            return self._resolve_from_journal(resolve)
        if resolve.commit and session.state is SessionState.ABORTED:
            raise UsageError(f"it was aborted here: {session.reason or 'its images were lost'}")
        if resolve.commit:
            session.commit()
        else:
            session.aborted_by_source(resolve.reason)
        return session.state

    def _resolve_from_journal(self, resolve: Resolve) -> str:
        state = Journal(str(self._registry.journal), resolve.session).state
        if resolve.commit and state is None:
            raise UsageError("this cache knows nothing of the session, and the source has given the process up")
        return state or SessionState.ABORTED
