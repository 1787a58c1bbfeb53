"""Blocks of captures while samples still need them: in memory, then on the local disk.

An image stands in many samples (SPair's 12,234 pairs use 1,800 images; the 1,000 episodes of a Pascal fold, 6,000
times, some 400), and capturing it anew costs a forward pass. The order of the samples is known beforehand, so the block
that gives way to others is the one whose next use is farthest off.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from vkvdb.types import Capture


class Cache:
    """Blocks in memory. The future is known, so the block that is needed last gives way (Belady's rule).

    With a scratch file, what gives way and is needed again is written there, and read when it is.
    """

    def __init__(self, future: Iterable[Iterable[int]], budget: float, scratch: Scratch | None = None) -> None:
        """`future` is, sample by sample, the blocks that will be asked for; `budget` in bytes."""
        self._uses: dict[int, list[int]] = defaultdict(list)
        for when, blocks in enumerate(future):
            for block in blocks:
                self._uses[block].append(when)
        for uses in self._uses.values():
            uses.reverse()
        self._budget = budget
        self._scratch = scratch
        self._kept: dict[int, tuple[Any, int]] = {}
        self._cheap: set[int] = set()
        self._bytes = 0

    def get(self, block: int, keep: set[int] | frozenset[int] = frozenset()) -> Any | None:
        """A block that is kept, or None; blocks of `keep` stay in memory beside it."""
        if found := self._kept.get(block):
            return found[0]
        read = self._scratch.read(block) if self._scratch is not None else None
        if read is not None:
            self.put(block, read, weight(read), {block, *keep})
        return read

    def put(self, block: int, value: Any, size: int, keep: set[int] | frozenset[int], *, costly: bool = True) -> None:
        """Keep a block of `size` bytes; blocks of `keep` (those of the sample at hand) stay, whatever the budget.

        One that is not `costly` to make again is not written to the disk.
        """
        self._kept[block] = (value, size)
        if not costly:
            self._cheap.add(block)
        self._bytes += size
        while self._bytes > self._budget:
            others = [b for b in self._kept if b not in keep]
            if not others:
                return
            last = max(others, key=lambda b: self._uses[b][-1] if self._uses[b] else float("inf"))
            if self._scratch is not None and self._uses[last] and last not in self._cheap:
                self._scratch.write(last, self._kept[last][0])
            self._drop(last)

    def used(self, when: int) -> None:
        """Sample number `when` is done: forget its uses, and blocks that no sample needs again."""
        for block, uses in self._uses.items():
            while uses and uses[-1] <= when:
                uses.pop()
            if not uses and block in self._kept:
                self._drop(block)

    def close(self) -> None:
        """Let everything go."""
        self._kept.clear()
        if self._scratch is not None:
            self._scratch.close()

    def _drop(self, block: int) -> None:
        self._bytes -= self._kept.pop(block)[1]


class Scratch:
    """Blocks in a file without a name, which is gone with the process, however that ends.

    It takes half of what is free on the disk when it is begun. What does not fit is not kept: it is captured again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._room = self._end = 0
        self._kept: dict[int, tuple[list[Capture], list[int]]] = {}

    def write(self, block: int, captures: Sequence[Capture]) -> None:
        """Keep a block's tokens, bit for bit, once; nothing where they do not fit."""
        import torch

        if block in self._kept:
            return
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - it stays open for the job
            self._room = shutil.disk_usage(self._folder).free // 2
        if self._end + weight(captures) > self._room:
            return
        self._file.seek(self._end)
        places = []
        for stack in (stack for capture in captures for stack in capture.stacks):
            places.append(self._file.tell())
            self._file.write(stack.tokens.contiguous().flatten().view(torch.uint8).numpy().data)
        self._end = self._file.tell()
        # Without their tokens: shape and type alone.
        bare = [_with_tokens(capture, [s.tokens.to("meta") for s in capture.stacks]) for capture in captures]
        self._kept[block] = (bare, places)

    def read(self, block: int) -> list[Capture] | None:
        """The captures of a block that is here, or None."""
        import numpy as np
        import torch

        if self._file is None or block not in self._kept:
            return None
        captures, places = self._kept[block]
        place = iter(places)
        read = []
        for capture in captures:
            tokens = []
            for stack in capture.stacks:
                self._file.seek(next(place))
                raw = np.fromfile(self._file, np.uint8, stack.tokens.nbytes)
                tokens.append(torch.from_numpy(raw).view(stack.tokens.dtype).view(stack.tokens.shape))
            read.append(_with_tokens(capture, tokens))
        return read

    def close(self) -> None:
        """Give the disk back."""
        self._kept.clear()
        if self._file is not None:
            self._file.close()
            self._file = None


def weight(captures: Sequence[Capture]) -> int:
    """The bytes of a block's tokens."""
    return sum(int(stack.tokens.nbytes) for capture in captures for stack in capture.stacks)


def _with_tokens(capture: Capture, tokens: Sequence[Any]) -> Capture:
    stacks = (replace(stack, tokens=each) for stack, each in zip(capture.stacks, tokens, strict=True))
    return replace(capture, stacks=tuple(stacks))
