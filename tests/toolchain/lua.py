"""Lua 5.4 of Debian's source package as a pair, and its own test suite, which is not in the package.

The suite is the user's own copy: IMGPROXY_LUA_TESTS names its folder, the one with all.lua. Lua's authors publish it
for each version; it must be that of Debian's. `ltests` in it has what is compiled into a Lua that the suite may look
into from the inside.
"""

import os
import re
import shutil
from pathlib import Path

from tests.toolchain.pairs import make, unpack

#: The user's copy of the suite.
SUITE = os.environ.get("IMGPROXY_LUA_TESTS")
#: Files that are put beside it. A module, of Lua instead of C, which a static Lua cannot load; and what runs before:
#: with musl there are locales of any name, all alike, where the suite would look for what is Brazilian in one.
_MORE = {
    "lib2-v2.lua": "lib2 = {id = function() return true end}\nreturn lib2\n",
    "before.lua": """\
local set = os.setlocale
os.setlocale = function(name, ...)
  if name and name ~= "" and name ~= "C" then return nil end
  return set(name, ...)
end
""",
}
#: What is left out of main.lua: a test that any Lua without readline fails, and one that is a race between a shell and
#: its child, whoever made Lua.
_LEFT_OUT = (
    r"(?s)-- non-string prompt\n.*?(?=-- test for error objects\n)",
    r"(?s)print\('testing Ctrl C'\)\n.*(?=print)",
)


def pair(compiler: Path, place: Path) -> Path:
    """Built in a folder, as anybody builds it."""
    source = unpack("lua5.4", place) / "src"
    make(source, "lua", f"CC={compiler}", "SYSCFLAGS=-DLUA_USE_POSIX")
    return source / "lua"


def pair_to_look_into(compiler: Path, place: Path) -> Path:
    """The same with all of Lua's assertions, an allocator that is strict, and the suite's own functions."""
    source = unpack("lua5.4", place) / "src"
    for path in (suite(place / "suite") / "ltests").iterdir():
        shutil.copy(path, source)
    make(
        source,
        "lua",
        f"CC={compiler}",
        "SYSCFLAGS=-DLUA_USE_POSIX",
        "MYCFLAGS=-DLUA_USER_H='\"ltests.h\"' -I.",
        "MYOBJS=ltests.o",
    )
    return source / "lua"


def suite(place: Path) -> Path:
    """A copy of the suite that may be written to; `before.lua` in it is to run first."""
    assert SUITE, "IMGPROXY_LUA_TESTS is not set"
    shutil.copytree(SUITE, place)
    for name, text in _MORE.items():
        (place / name).write_text(text)
    main = place / "main.lua"
    text = main.read_text()
    for part in _LEFT_OUT:
        text, found = re.subn(part, "", text)
        assert found == 1, "another version of the suite?"
    main.write_text(text)
    return place
