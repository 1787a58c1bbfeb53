"""Each task batched over layers and heads, beside the official script's algorithm run head by head.

    python benchmarks/tasks.py [--layers 8 --heads 4 --parts 3 --dim 64 --grid 14 --pixels 112 --points 10]

Three times of one run, the best of --repeat: the task; the loop (on a share of the sites, scaled up; torch and
scikit-learn may use the same threads); and the bare matrix products, which are recorded while the task runs, solver
steps included, and then repeated alone. Tokens are made: smooth fields in noise, in which an object can be told from
its ground.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

# As the command line does: threads that spin while others work would be measured, not the tasks.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.utils._python_dispatch import TorchDispatchMode

from vkvdb import masks
from vkvdb.metrics import cell_shares
from vkvdb.samples import Episode, ImagePair, Labelled
from vkvdb.tasks.correspondence import Correspondence
from vkvdb.tasks.foreground import Foreground
from vkvdb.types import Capture, Site, TokenGrid, TokenStack

PARTS = ("key", "key_unrotated", "value")
PRODUCTS = (torch.ops.aten.bmm.default, torch.ops.aten.mm.default)


class Recorder(TorchDispatchMode):
    """Notes every matrix product: the operation and how its factors lie in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note and go on."""
        if func in PRODUCTS:
            self.seen.append((func, tuple((a.shape, a.stride(), a.dtype) for a in args)))
        return func(*args, **(kwargs or {}))

    def again(self) -> Callable[[], None]:
        """The same products on other numbers."""
        made: dict[Any, torch.Tensor] = {}
        for _, factors in self.seen:
            for shape, stride, dtype in factors:
                if (shape, stride) not in made:
                    room = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
                    made[shape, stride] = torch.randn(room, dtype=dtype).as_strided(shape, stride)
        calls = [(func, [made[shape, stride] for shape, stride, _ in factors]) for func, factors in self.seen]

        def run() -> None:
            for func, factors in calls:
                func(*factors)

        return run


def best_of(repeat: int, run: Callable[[], Any]) -> float:
    """Seconds of the fastest of some runs, after one that does not count."""
    run()
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)


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


def each_head(tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    """Features (rows, cols, dim) of every head and of all heads concatenated."""
    yield from tokens
    yield torch.cat(list(tokens), -1)


def dift_loop(sample: ImagePair, of: dict[str, Capture], sites: int) -> list[float]:
    """eval_spair.py of DIFT, for each head of some sites."""
    stacks = [of[name].stacks[0].tokens for name in (sample.source, sample.target)]
    side = max(sample.target_box[2] - sample.target_box[0], sample.target_box[3] - sample.target_box[1])
    size = of[sample.source].size
    assert size is not None
    shares = []
    for site in range(sites):
        for heads in zip(each_head(stacks[0][site]), each_head(stacks[1][site]), strict=True):
            source, target = (
                torch.nn.functional.interpolate(h.permute(2, 0, 1)[None], (size[1], size[0]), mode="bilinear")
                for h in heads
            )
            height, width = target.shape[-2:]
            correct = 0
            for point, truth in zip(sample.source_points, sample.target_points, strict=True):
                vector = source[0, :, int(point[1]), int(point[0])].view(1, -1)
                everything = target.view(target.shape[1], -1).transpose(0, 1)
                cosines = torch.nn.functional.normalize(everything) @ torch.nn.functional.normalize(vector).t()
                row, col = np.unravel_index(cosines.view(height, width).numpy().argmax(), (height, width))
                correct += ((col - truth[0]) ** 2 + (row - truth[1]) ** 2) ** 0.5 / side <= 0.1
            shares.append(correct / len(sample.source_points))
    return shares


def linear_loop(sample: Episode, of: dict[str, Capture], sites: int) -> list[float]:
    """scikit-learn's logistic regression, for each head of some sites."""
    names = [s.image for s in sample.supports] + [sample.query.image]
    stacks = [of[name].stacks[0].tokens for name in names]
    grid = of[names[-1]].grid
    labels = np.concatenate([cell_shares(masks.decode(s.mask), grid).ravel() > 0.5 for s in sample.supports])
    truth = masks.decode(sample.query.mask)
    shares = []
    for site in range(sites):
        for *supports, query in zip(*(each_head(s[site]) for s in stacks), strict=True):
            x = np.concatenate([s.flatten(0, 1).numpy() for s in supports])
            scaler = StandardScaler().fit(x)
            model = LogisticRegression(tol=1e-6, max_iter=1000).fit(scaler.transform(x), labels)
            logits = torch.tensor(model.decision_function(scaler.transform(query.flatten(0, 1).numpy())))
            maps = logits.view(1, 1, grid.rows, grid.cols)
            chosen = torch.nn.functional.interpolate(maps, truth.shape, mode="bilinear")[0, 0].numpy() > 0
            shares.append((chosen & truth).sum() / (chosen | truth).sum())
    return shares


def line(name: str, run: Callable[[], Any], loop: Callable[[int], Any] | None, options: argparse.Namespace) -> None:
    """Measure and print one row."""
    recorder = Recorder()
    with recorder:
        run()
    task, bare = best_of(options.repeat, run), best_of(options.repeat, recorder.again())
    row = f"| {name} | {1e3 * task:.1f} ms | {1e3 * bare:.1f} ms | {task / bare:.1f} |"
    if loop:
        sites = min(options.loop_sites, options.layers * options.parts)
        looped = best_of(1, lambda: loop(sites)) * options.layers * options.parts / sites
        row += f" {looped:.2f} s | {looped / task:.0f} |"
    else:
        row += " - | - |"
    print(row, flush=True)


def main() -> None:
    """Make tokens, measure every task, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"layers": 8, "heads": 4, "parts": 3, "dim": 64, "grid": 14, "pixels": 112, "points": 10}
    for name, value in {**sizes, "repeat": 7, "loop-sites": 2, "threads": torch.get_num_threads()}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{value} unless told")
    options = parser.parse_args()
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

    print(
        f"{options.layers} layers x {options.parts} parts x {options.heads} heads (and all as one), dim {options.dim},"
    )
    print(f"grid {options.grid}, {options.pixels} px, {options.points} points; {options.threads} threads\n")
    print("| a sample of | task | its products alone | ratio | head by head | ratio |\n|---|---|---|---|---|---|")
    for readout in ("dift", "grid"):
        task = Correspondence(readout=readout)
        loop = (lambda sites: dift_loop(pair, of, sites)) if readout == "dift" else None
        line(f"correspondence, {readout}", lambda task=task: list(task.score(pair, of, {})), loop, options)
    for classifier in ("logistic", "ridge"):
        probe = Foreground(classifier=classifier)
        fit = (lambda sites: linear_loop(episode, of, sites)) if classifier == "logistic" else None
        line(f"foreground, {classifier}", lambda probe=probe: list(probe.score(episode, of, {})), fit, options)


if __name__ == "__main__":
    main()
