"""msgpack behind hard limits, and messages as frozen dataclasses.

A message is a map with its name under "t" and its fields by name. Only the types a field declares are taken; unknown
fields are ignored (a later minor version may add some), missing ones take the dataclass's default or are refused.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import msgpack

from imgwire.errors import RemoteProtocolError

#: More entries than any message of ours has; keeps a hostile one from growing in memory.
MAX_ITEMS = 4096

#: What a field may hold; plain data only.
Plain = None | bool | int | float | str | bytes | list["Plain"] | dict[str, "Plain"]


def pack(message: Any, name: str) -> bytes:
    """Encode the dataclass `message` under `name`."""
    fields = {field.name: getattr(message, field.name) for field in dataclasses.fields(message)}
    packed: bytes = msgpack.packb({"t": name, **fields})
    return packed


def unpack(raw: bytes) -> dict[str, Any]:
    """Decode one map with string keys; anything else is a RemoteProtocolError."""
    try:
        value = msgpack.unpackb(
            raw,
            raw=False,
            strict_map_key=True,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
            ext_hook=_no_extension,
        )
    except (ValueError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"a message that is not msgpack within its limits: {error}") from error
    except RecursionError as error:
        raise RemoteProtocolError("a message that is nested too deep") from error
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise RemoteProtocolError("a message that is not a map with names as keys")
    return value


def _no_extension(code: int, _data: bytes) -> None:
    raise ValueError(f"extension type {code}")


_T = TypeVar("_T")


def build(kind: type[_T], fields: Mapping[str, Any]) -> _T:
    """Make the dataclass `kind` of `fields`, checking each declared type."""
    values: dict[str, Any] = {}
    for field, hint in _hints(kind):
        if field.name in fields:
            values[field.name] = _checked(kind, field.name, hint, fields[field.name])
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise RemoteProtocolError(f"{kind.__name__} without its field {field.name!r}")
    return kind(**values)


def _hints(kind: type[Any]) -> tuple[tuple[dataclasses.Field[Any], Any], ...]:
    hints = get_type_hints(kind)
    return tuple((field, hints[field.name]) for field in dataclasses.fields(kind))


def _checked(kind: type[Any], name: str, hint: Any, value: Any) -> Any:
    container = get_origin(hint)
    if container is tuple and isinstance(value, list):
        item = get_args(hint)[0]
        return tuple(_checked(kind, name, item, each) for each in value)
    if container is dict and isinstance(value, dict):
        return value
    if container in (tuple, dict) or type(value) not in (get_args(hint) or (hint,)):
        raise RemoteProtocolError(f"{kind.__name__}.{name} is a {type(value).__name__}")
    if type(value) is int and value < 0:
        raise RemoteProtocolError(f"{kind.__name__}.{name} is {value}")
    return value
