"""The call sites of both executables of a program, and the threads of a process changed from one to the other."""

from collections.abc import Mapping

from transform.memory import Memory
from transform.popcorn.matching import Plan, match
from transform.popcorn.places import Side
from transform.popcorn.pointers import Pointers
from transform.popcorn.rewrite import Layout, Load, Rewritten, rewrite
from transform.popcorn.sections import CallSite
from transform.popcorn.unwind import Registers, walk


class PopcornPair:
    """From `source` to `target`. What is found out about a call site is kept."""

    def __init__(self, source: Side, target: Side) -> None:
        self.source, self.target = source, target
        self._plans: dict[int, Plan] = {}

    def translate(self, memory: Memory, threads: Mapping[str, Registers], load: Load) -> dict[str, Rewritten]:
        """Each thread of a process for the target, by who it is; nothing is written. TransformError, AddressError."""
        layouts = {}
        for who, registers in threads.items():
            stack = walk(memory, registers, self.source, who)
            layouts[who] = Layout(stack, [self._plan(frame.site) for frame in stack.frames])
        pointers = Pointers(
            [(layout.stack.low, layout.stack.base) for layout in layouts.values()],
            [variable for layout in layouts.values() for variable in layout.variables()],
            {one: other for layout in layouts.values() for one, other in layout.frame_pointers().items()},
        )
        return {who: rewrite(layout, pointers, self.source, self.target, load) for who, layout in layouts.items()}

    def _plan(self, site: CallSite) -> Plan:
        if site.id not in self._plans:
            self._plans[site.id] = match(site, self.source, self.target)
        return self._plans[site.id]
