"""Plain lists, dictionaries, numbers and texts out of a pickle, read without unpickling: nothing in it is ever run.

`pickletools.genops` of the standard library only splits the bytes into opcodes and their arguments. Here these are
walked with a stack of our own, and only those that plain data needs in protocols 0 to 2 are known. Every opcode that
names code, calls it or builds an object of a class (GLOBAL, REDUCE, BUILD, INST, ...) is refused like any other.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any

_NUMBERS = frozenset(("INT", "LONG", "LONG1", "BININT", "BININT1", "BININT2"))
_TEXTS = frozenset(("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE"))
_PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_GETS = frozenset(("GET", "BINGET", "LONG_BINGET"))
_MARK = object()


def plain_data(data: bytes) -> Any:
    """What a pickle of plain data holds. Raises ValueError, saying why, for any other bytes."""
    walk = _Walk()
    for opcode, argument, position in pickletools.genops(data):
        if opcode.name == "STOP":
            return walk.result()
        try:
            walk.step(opcode.name, argument)
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"its opcode {opcode.name} at byte {position} finds nothing to work on") from error
        except ValueError as error:
            raise ValueError(f"byte {position}: {error}") from error
    raise ValueError("it ends without STOP")  # genops says so itself


class _Walk:
    """The stack and the memo."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._does: dict[str, Callable[[], object]] = {
            "MARK": lambda: self._stack.append(_MARK),
            "EMPTY_LIST": lambda: self._stack.append([]),
            "EMPTY_DICT": lambda: self._stack.append({}),
            "EMPTY_TUPLE": lambda: self._stack.append(()),
            "LIST": lambda: self._stack.append(self._since_mark()),
            "TUPLE": lambda: self._stack.append(tuple(self._since_mark())),
            "TUPLE1": lambda: self._stack.append(tuple(self._last(1))),
            "TUPLE2": lambda: self._stack.append(tuple(self._last(2))),
            "TUPLE3": lambda: self._stack.append(tuple(self._last(3))),
            "DICT": lambda: self._stack.append(_set({}, self._since_mark())),
            "APPEND": lambda: self._extend(self._last(1)),
            "APPENDS": lambda: self._extend(self._since_mark()),
            "SETITEM": lambda: self._update(self._last(2)),
            "SETITEMS": lambda: self._update(self._since_mark()),
        }

    def step(self, name: str, argument: Any) -> None:
        """Do what an opcode says. Raises ValueError for one that plain data does not need."""
        if name in _NUMBERS or name in _TEXTS:
            self._stack.append(argument)
        elif name in _PUTS:
            self._memo[argument] = self._stack[-1]
        elif name in _GETS:
            self._stack.append(self._memo[argument])
        elif name in self._does:
            self._does[name]()
        elif name != "PROTO":
            raise ValueError(f"it holds the opcode {name}, which lists, dictionaries, numbers and texts do not need")

    def result(self) -> Any:
        """What is left in the end."""
        if len(self._stack) != 1 or self._stack[0] is _MARK:
            raise ValueError(f"it ends with {len(self._stack)} things instead of one")
        return self._stack[0]

    def _last(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise IndexError
        found = self._stack[-count:]
        del self._stack[-count:]
        return found

    def _since_mark(self) -> list[Any]:
        place = len(self._stack) - 1
        while self._stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise IndexError
        found = self._stack[place + 1 :]
        del self._stack[place:]
        return found

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise TypeError
        target.extend(values)

    def _update(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise TypeError
        _set(target, values)


def _set(target: dict[Any, Any], values: list[Any]) -> dict[Any, Any]:
    """Keys and values in turn into a dictionary."""
    if len(values) % 2 or not all(isinstance(key, str | int) for key in values[::2]):
        raise TypeError
    target.update(zip(values[::2], values[1::2], strict=True))
    return target
