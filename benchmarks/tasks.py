"""Each task batched over layers and heads, beside its bare products and the official script's algorithm head by head.

    python benchmarks/tasks.py [--shape toy] [--threads 1] [--clock cpu] [--loop-sites 0] [--only referring]

Times of one run, in turns, the least of --repeat each: the task; the bare matrix products, which are recorded while the
task runs, solver steps included, and then repeated alone, on other numbers in the same places of memory; what else the
algorithm can't do without, as bare operations (`needs.py`); and the loop, once, on a share of the sites, scaled up
(torch and scikit-learn may use the same threads). Tokens are made: smooth fields in noise, in which an object can be
told from its ground. `--shape real`, the default, has a decoder's heads and an image's grid as in LLaVA-OneVision 7B.
With `--clock cpu`, times are the process's own, which on a shared machine and with one thread say more.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

# As the command line does: threads that spin while others work would be measured, not the tasks.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import needs
import numpy as np
import official_loops as loops
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vkvdb import masks
from vkvdb.metrics import cell_shares
from vkvdb.samples import Clip, Episode, Expression, Image, ImagePair, ImageSet, Labelled
from vkvdb.tasks.correspondence import Correspondence
from vkvdb.tasks.cosegmentation import Cosegmentation
from vkvdb.tasks.foreground import Foreground
from vkvdb.tasks.referring import Referring
from vkvdb.tasks.segmentation import Segmentation
from vkvdb.tasks.temporal_correspondence import TemporalCorrespondence
from vkvdb.types import Capture, Site, TokenGrid, TokenStack

SHAPES = {
    "real": {"layers": 8, "parts": 2, "heads": 4, "dim": 128, "grid": 27, "pixels": 384, "points": 10},
    "toy": {"layers": 8, "parts": 3, "heads": 4, "dim": 64, "grid": 14, "pixels": 112, "points": 10},
}
PARTS = ("key", "value", "key_unrotated")
PRODUCTS = {
    getattr(getattr(torch.ops.aten, name), kind) for name in ("bmm", "mm", "baddbmm") for kind in ("default", "out")
}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
WORDS = "cat"


class Recorder(TorchDispatchMode):
    """Notes every matrix product, how its factors lie in memory, and a solver's other steps."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, list[tuple[Any, ...]], dict[str, tuple[Any, ...]]]] = []
        self.solved: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note and go on."""
        if func in PRODUCTS:
            named = {name: self._place(a) for name, a in (kwargs or {}).items()}
            self.seen.append((func, [self._place(a) for a in args], named))
        if func in needs.SOLVERS:
            self.solved.append((func, tuple((a.shape, a.dtype) for a in args if isinstance(a, torch.Tensor))))
        return func(*args, **(kwargs or {}))

    def closeness(self) -> list[tuple[int, ...]]:
        """Shapes (problems, centres, tokens) of what k-means compares."""
        adding = torch.ops.aten.baddbmm.default
        return [(*b[2][:2], c[2][2]) for func, (_, b, c), _ in (one for one in self.seen if one[0] == adding)]

    @staticmethod
    def _place(factor: torch.Tensor) -> tuple[Any, ...]:
        where = factor.untyped_storage().data_ptr(), factor.dtype
        return where, factor.storage_offset(), factor.shape, factor.stride()

    def again(self) -> Callable[[], None]:
        """The same products on other numbers."""
        places = [place for _, factors, named in self.seen for place in (*factors, *named.values())]
        ends: dict[Any, int] = {}
        for where, offset, shape, stride in places:
            end = offset + 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
            ends[where] = max(ends.get(where, 0), end)
        made = {where: torch.randn(end, dtype=where[1]) for where, end in ends.items()}

        def lay(place: tuple[Any, ...]) -> torch.Tensor:
            where, offset, shape, stride = place
            return made[where].as_strided(shape, stride, offset)

        calls = [
            (func, [lay(one) for one in factors], {name: lay(one) for name, one in named.items()})
            for func, factors, named in self.seen
        ]

        def run() -> None:
            for func, factors, named in calls:
                func(*factors, **named)

        return run


def best_of(repeat: int, clock: Callable[[], float], *runs: Callable[[], Any]) -> list[float]:
    """Seconds of the fastest of some runs of each, in turns, after a turn that does not count."""
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(repeat + 1):
        for run, found in zip(runs, times, strict=True):
            begin = clock()
            run()
            if turn:
                found.append(clock() - begin)
    return [min(found) for found in times]


def ellipse(pixels: int, generator: np.random.Generator) -> np.ndarray[Any, Any]:
    """An object somewhere in the middle."""
    x, y = generator.uniform(0.35, 0.65, 2) * pixels
    a, b = generator.uniform(0.2, 0.35, 2) * pixels
    rows, cols = np.mgrid[:pixels, :pixels] + 0.5
    region: np.ndarray[Any, Any] = ((cols - x) / a) ** 2 + ((rows - y) / b) ** 2 <= 1
    return region


def captures(options: argparse.Namespace, regions: list[np.ndarray[Any, Any]]) -> dict[str, Capture]:
    """One capture for each object, tokens (layers x parts, heads, grid, grid, dim)."""
    side, dim = options.grid, options.dim
    grid = TokenGrid(side, side, (0.0, 0.0, float(options.pixels), float(options.pixels)))
    sites = tuple(Site("decoder", layer, part) for layer in range(options.layers) for part in PARTS[: options.parts])
    directions = torch.randn(len(sites), options.heads, 1, 1, dim)
    made = {}
    for n, region in enumerate(regions):
        share = torch.tensor(cell_shares(region, grid), dtype=torch.float32)[..., None]
        field = torch.nn.functional.interpolate(
            torch.randn(len(sites) * options.heads, dim, 4, 4), (side, side), mode="bilinear"
        )
        smooth = field.permute(0, 2, 3, 1).reshape(len(sites), options.heads, side, side, dim)
        tokens = share * directions * 0.3 + smooth + 0.5 * torch.randn_like(smooth)
        made[str(n)] = Capture(str(n), "base", grid, (TokenStack(sites, tokens),), (options.pixels, options.pixels))
    return made


class Table:
    """A row a task, printed as it is measured."""

    def __init__(self, options: argparse.Namespace, bare: needs.Needs) -> None:
        self.options, self.bare = options, bare

    def head(self) -> None:
        """The shape and the columns' names."""
        o = self.options
        print(f"{o.layers} layers x {o.parts} parts x {o.heads} heads (and all as one), dim {o.dim}, grid {o.grid},")
        print(f"{o.pixels} px, {o.points} points; {o.threads} threads, {o.clock} time, the least of {o.repeat}\n")
        print(
            "| a sample of | task | its products | ratio | what else it needs | ratio to both | head by head | ratio |"
        )
        print("|---|---|---|---|---|---|---|---|")

    def row(self, name: str, run: Callable[[], Any], loop: Callable[[int], Any] | None) -> None:
        """Measure a task and print its row."""
        options = self.options
        if options.only and not any(name.startswith(one) for one in options.only):
            return
        recorder = Recorder()
        with recorder:
            run()
        clock = CLOCKS[options.clock]
        others = self.bare.of(name, recorder.solved, recorder.closeness())
        task, products, rest = best_of(options.repeat, clock, run, recorder.again(), others)
        row = f"| {name} | {1e3 * task:.1f} ms | {1e3 * products:.1f} ms | {task / products:.1f} |"
        row += f" {1e3 * rest:.1f} ms | {task / (products + rest):.1f} |"
        sites = min(options.loop_sites, options.layers * options.parts)
        if loop and sites:
            begin = clock()
            loop(sites)
            looped = (clock() - begin) * options.layers * options.parts / sites
            row += f" {looped:.1f} s | {looped / task:.0f} |"
        else:
            row += " - | - |"
        print(row, flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="real", help="real unless told")
    for name in SHAPES["real"]:
        values = ", ".join(f"{shape[name]} ({of})" for of, shape in SHAPES.items())
        parser.add_argument(f"--{name}", type=int, help=values)
    for name, value in {"repeat": 7, "loop-sites": 1, "threads": torch.get_num_threads()}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{value} unless told")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="wall unless told")
    parser.add_argument("--only", action="append", help="tasks whose name begins so; all unless told")
    options = parser.parse_args()
    for name, value in SHAPES[options.shape].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def main() -> None:
    """Make tokens, measure every task, print a table."""
    options = parse()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    regions = [ellipse(options.pixels, generator) for _ in range(6)]
    of = captures(options, regions)
    points = generator.integers(0, options.pixels, (2, options.points, 2)) + 0.5
    pair = ImagePair(
        id="pair", group="", cluster="", source="0", target="1",
        source_points=tuple(map(tuple, points[0].tolist())), target_points=tuple(map(tuple, points[1].tolist())),
        target_box=(0.0, 0.0, options.pixels / 2, options.pixels / 3),
    )  # fmt: skip
    labelled = tuple(Labelled(str(n), masks.encode(region)) for n, region in enumerate(regions))
    episode = Episode(id="episode", group="", cluster="", supports=labelled[:5], query=labelled[5])
    table = Table(options, needs.Needs(options, regions))
    table.head()
    for readout in ("dift", "grid"):
        task = Correspondence(readout=readout)
        loop = (lambda sites: loops.dift_loop(pair, of, sites)) if readout == "dift" else None
        table.row(f"correspondence, {readout}", lambda task=task: list(task.score(pair, of, {})), loop)
    for classifier in ("logistic", "ridge"):
        probe = Foreground(classifier=classifier)
        fit = (lambda sites: loops.linear_loop(episode, of, sites)) if classifier == "logistic" else None
        table.row(f"foreground, {classifier}", lambda probe=probe: list(probe.score(episode, of, {})), fit)

    stack = of["0"].stacks[0]
    text = torch.randn(len(stack.sites), options.heads, options.dim)
    texts = {WORDS: dict(zip(stack.sites, text, strict=True))}
    named = Image(id="image", group="", cluster="", image="0", category=WORDS, mask=labelled[0].mask)
    others = tuple(one.mask for one in labelled[1:3])
    meant = Expression(id="said", group="", cluster="", image="0", text=WORDS, mask=labelled[0].mask, others=others)
    words: list[tuple[str, Any, Image | Expression]] = [
        ("segmentation", Segmentation(), named),
        ("referring", Referring(), meant),
    ]
    for name, asked, sample in words:
        table.row(
            name,
            lambda asked=asked, sample=sample: list(asked.score(sample, of, texts)),
            lambda sites, sample=sample: loops.words_loop(sample, of, text, sites),
        )
    together = ImageSet(id="set", group="", cluster="", members=labelled)
    cluster = Cosegmentation()
    table.row(
        "cosegmentation",
        lambda: list(cluster.score(together, of, {})),
        lambda sites: loops.cluster_loop(together, of, cluster, sites),
    )
    name_of = tuple(str(n) for n in range(len(regions)))
    clip = Clip(id="clip", group="", cluster="", frames=name_of, objects=tuple((one.mask,) for one in labelled))
    carried = TemporalCorrespondence()
    table.row(
        f"temporal_correspondence, {len(regions)} frames",
        lambda: list(carried.score(clip, of, {})),
        lambda sites: loops.dino_loop(clip, of, carried, sites),
    )


if __name__ == "__main__":
    main()
