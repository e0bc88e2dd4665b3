"""Reads the pickles of CIFAR-100 without unpickling: nothing a file names is imported or called.

The opcodes of a small closed set build dictionaries, lists, tuples, numbers, text and bytes. What
a pickle would import or call stays a `Name` or a `Call`, of which `as_bytes_array` understands
the few that stand for a numpy array of bytes.
"""

from __future__ import annotations

import math
import pickletools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# Five times as many as in the training images of CIFAR-100.
MOST_STEPS = 1_000_000

# What Python 2 and 3 write for a numpy array, in protocols 2 to 5.
NAMES = {
    "numpy ndarray",
    "numpy dtype",
    "numpy.core.multiarray _reconstruct",
    "numpy._core.multiarray _reconstruct",
    "numpy.core.numeric _frombuffer",
    "numpy._core.numeric _frombuffer",
    "_codecs encode",
}
VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
VALUES |= {"BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
VALUES |= {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class RefusedError(ValueError):
    """A pickle has an opcode or a name that these files do not need."""


@dataclass(frozen=True, eq=False)
class Name:
    """Something that unpickling would import."""

    name: str


@dataclass(eq=False)
class Call:
    """Something that unpickling would call, and the state it would then set."""

    function: str
    arguments: tuple[Any, ...]
    state: Any = None


class Mark:
    """Where on the stack the items of a collection begin."""


def load(content: bytes) -> dict[str, Any]:
    """Return the dictionary a pickle stands for.

    Raises:
        RefusedError: it holds more than plain values and arrays.
        Exception: it is damaged, which can raise nearly anything.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if count > MOST_STEPS:
            raise ValueError(f"it has more than {MOST_STEPS} steps")
        _step(opcode.name, argument, stack, memo)
    (result,) = stack
    if not isinstance(result, dict):
        raise ValueError("it is not a dictionary")
    return result


def as_bytes_array(value: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the numpy array of bytes that a `Call` stands for; raise ValueError if it is none."""
    import numpy as np

    match value:
        case Call("_reconstruct", _, (_, shape, Call("dtype", ("u1", *_)), 0, raw)):
            pass
        case Call("_frombuffer", (raw, Call("dtype", ("u1", *_)), shape, "C")):
            pass
        case _:
            raise ValueError("it is not an array of bytes")
    match raw:
        case Call("encode", (str() as text, "latin1")) | (str() as text):
            raw = text.encode("latin1")  # only here: one text in many arrays is no bomb
    if not isinstance(raw, bytes | bytearray) or not _fits(shape, len(raw)):
        raise ValueError("the shape of an array is not that of its bytes")
    return np.frombuffer(raw, np.uint8).reshape(shape)


def _fits(shape: Any, size: int) -> bool:
    """Whether an array of `size` bytes can have this shape, which anything can stand for."""
    if not isinstance(shape, tuple) or not 1 <= len(shape) <= 4:
        return False
    return all(type(side) is int and side >= 0 for side in shape) and math.prod(shape) == size


def _step(opcode: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    if opcode in VALUES:
        stack.append(argument)
        return
    if opcode in CONSTANTS:
        stack.append(CONSTANTS[opcode])
        return
    match opcode:
        case "PROTO" | "FRAME" | "STOP":
            pass
        case "BINPUT" | "LONG_BINPUT":
            memo[argument] = stack[-1]
        case "MEMOIZE":
            memo[len(memo)] = stack[-1]
        case "BINGET" | "LONG_BINGET":
            stack.append(memo[argument])
        case "MARK":
            stack.append(Mark)
        case "EMPTY_LIST":
            stack.append([])
        case "EMPTY_DICT":
            stack.append({})
        case "TUPLE":
            stack.append(tuple(_above_mark(stack)))
        case "TUPLE1" | "TUPLE2" | "TUPLE3":
            stack.append(tuple(_top(stack, int(opcode[-1]))))
        case "APPEND" | "APPENDS":
            items = _above_mark(stack) if opcode == "APPENDS" else _top(stack, 1)
            _last(stack, list).extend(items)
        case "SETITEM" | "SETITEMS":
            items = _above_mark(stack) if opcode == "SETITEMS" else _top(stack, 2)
            _set_items(_last(stack, dict), items)
        case "GLOBAL":
            stack.append(_name(argument))
        case "STACK_GLOBAL":
            module, name = _top(stack, 2)
            stack.append(_name(f"{module} {name}" if type(module) is type(name) is str else ""))
        case "REDUCE":
            function, arguments = _top(stack, 2)
            if not isinstance(function, Name) or not isinstance(arguments, tuple):
                raise ValueError("it calls what is no function")
            stack.append(Call(function.name, arguments))
        case "BUILD":
            (state,) = _top(stack, 1)
            _last(stack, Call).state = state
        case _:
            raise RefusedError(f"it has the opcode {opcode}")


def _name(full: str) -> Name:
    if full not in NAMES:
        wanted = ascii(full.replace(" ", ".", 1))
        raise RefusedError(f"it wants {wanted[:100]}")
    return Name(full.split(" ")[1])


def _above_mark(stack: list[Any]) -> list[Any]:
    """Take off the items above the last mark, and the mark."""
    items = []
    while (item := stack.pop()) is not Mark:
        items.append(item)
    return items[::-1]


def _top(stack: list[Any], count: int) -> list[Any]:
    """Take off the last items."""
    if len(stack) < count:
        raise ValueError("a value is missing")
    items = stack[-count:]
    del stack[-count:]
    return items


def _last(stack: list[Any], kind: type[Any]) -> Any:
    """The value on top, which has to be of this kind."""
    if not isinstance(stack[-1], kind):
        raise ValueError(f"a value is no {kind.__name__.lower()}")
    return stack[-1]


def _set_items(target: dict[str, Any], items: list[Any]) -> None:
    # Other keys could be chosen to collide, or be nested too deeply to be hashed.
    if len(items) % 2 or not all(isinstance(key, str) for key in items[::2]):
        raise ValueError("a dictionary has a key that is not text")
    target.update(zip(items[::2], items[1::2], strict=True))
