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
from scipy import ndimage
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch.utils._python_dispatch import TorchDispatchMode

from vkvdb import boundaries, masks
from vkvdb.metrics import cell_shares
from vkvdb.samples import Clip, Episode, Expression, Image, ImagePair, ImageSet, Labelled
from vkvdb.tasks.correspondence import Correspondence
from vkvdb.tasks.cosegmentation import Cosegmentation
from vkvdb.tasks.foreground import Foreground
from vkvdb.tasks.referring import Referring
from vkvdb.tasks.segmentation import Segmentation
from vkvdb.tasks.temporal_correspondence import TemporalCorrespondence
from vkvdb.types import Capture, Site, TokenGrid, TokenStack

PARTS = ("key", "key_unrotated", "value")
PRODUCTS = (torch.ops.aten.bmm.default, torch.ops.aten.mm.default, torch.ops.aten.baddbmm.default)
WORDS = "cat"


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


def otsu(values: np.ndarray[Any, Any]) -> float:
    """Otsu's threshold from a histogram of 256 bins, as image libraries have it."""
    counts, edges = np.histogram(values, 256)
    centres = (edges[1:] + edges[:-1]) / 2
    below, above = counts.cumsum(), counts[::-1].cumsum()[::-1]
    mean_below = (counts * centres).cumsum() / below
    mean_above = ((counts * centres)[::-1].cumsum() / above[::-1])[::-1]
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(centres[between.argmax()])


def words_loop(sample: Image | Expression, of: dict[str, Capture], text: torch.Tensor, sites: int) -> list[Any]:
    """A dot product, Otsu, interpolation and the measures, for each head of some sites and each reading of it."""
    capture = of[sample.image]
    assert sample.mask is not None
    truth = masks.decode(sample.mask)
    found: list[Any] = []
    for site in range(sites):
        vectors = [*text[site], text[site].flatten()]
        for tokens, vector in zip(each_head(capture.stacks[0].tokens[site]), vectors, strict=True):
            moved = tokens - tokens.mean((0, 1))
            readings = [tokens @ vector]
            if isinstance(sample, Image):
                readings.append(moved @ vector / moved.norm(dim=-1))
            for cells in readings:
                up = torch.nn.functional.interpolate(cells[None, None], truth.shape, mode="bilinear")[0, 0].numpy()
                chosen = up > otsu(cells.numpy())
                found.append((chosen & truth).sum() / (chosen | truth).sum())
                found.append(roc_auc_score(truth.ravel(), up.ravel()))
                if isinstance(sample, Image):
                    found.append(average_precision_score(truth.ravel(), up.ravel()))
                    continue
                labels, _ = ndimage.label(chosen)
                largest = np.bincount(labels.ravel())[1:].argmax() + 1
                found.append(ndimage.find_objects(labels)[largest - 1])
                found.append(truth[np.unravel_index(up.argmax(), up.shape)])
                objects = truth | np.any([masks.decode(o) for o in sample.others], 0)
                found.append(roc_auc_score(truth[objects], up[objects]))
    return found


def cluster_loop(sample: ImageSet, of: dict[str, Capture], task: Cosegmentation, sites: int) -> list[float]:
    """cosegmentation.py of Amir et al. with scikit-learn's k-means, for each head of some sites."""
    stacks = [of[member.image].stacks[0].tokens for member in sample.members]
    truths = [masks.decode(member.mask) for member in sample.members]
    grid = of[sample.members[0].image].grid
    rim = np.pad(np.zeros((grid.rows - 2, grid.cols - 2)), 1, constant_values=1).ravel()
    inside = np.concatenate([cell_shares(truth, grid).ravel() > 0.5 for truth in truths])
    found = []
    for site in range(sites):
        for each in zip(*(each_head(s[site]) for s in stacks), strict=True):
            x = torch.nn.functional.normalize(torch.cat([one.flatten(0, 1) for one in each]), dim=-1).numpy()
            some = np.random.default_rng(0).permutation(len(x))[: task.fitted]
            before = np.inf
            for k in range(1, task.most + 1):
                model = KMeans(k, n_init=task.restarts, max_iter=task.iterations, tol=0, random_state=0).fit(x[some])
                error = (model.transform(x).min(1) ** 2).mean()
                if error > task.elbow * before:
                    break
                before = error
            labels = model.predict(x)
            rims = np.tile(rim, len(truths))
            by_border = [c for c in range(k) if rims[labels == c].mean() < task.border * rim.mean()]
            by_labels = [c for c in range(k) if inside[labels == c].mean() > 0.5]
            for foreground in (by_border, by_labels):
                cells = torch.tensor(np.isin(labels, foreground)).float().view(len(truths), 1, grid.rows, grid.cols)
                for truth, one in zip(truths, cells, strict=True):
                    up = torch.nn.functional.interpolate(one[None], truth.shape, mode="bilinear")[0, 0].numpy() > 0.5
                    found.append((up & truth).sum() / max((up | truth).sum(), 1))
    return found


def dino_loop(sample: Clip, of: dict[str, Capture], task: TemporalCorrespondence, sites: int) -> list[float]:
    """eval_video_segmentation.py of DINO, for each head of some sites; J and F of each frame by itself."""
    grid = of[sample.frames[0]].grid
    truths = [masks.decode(mask) for (mask,) in sample.objects if mask is not None]
    place = torch.arange(grid.rows * grid.cols)
    row, col = place // grid.cols, place % grid.cols
    reach = max(1, round(task.neighbourhood * grid.rows / 27))
    near = ((row[:, None] - row).abs() <= reach) & ((col[:, None] - col).abs() <= reach)
    first = torch.tensor(cell_shares(truths[0], grid) > 0.5).flatten()
    size = boundaries.radius(*truths[0].shape)
    disk = np.hypot(*np.mgrid[-size : size + 1, -size : size + 1]) <= size
    found = []
    for site in range(sites):
        for frames in zip(*(each_head(of[name].stacks[0].tokens[site]) for name in sample.frames), strict=True):
            units = [torch.nn.functional.normalize(frame.flatten(0, 1)) for frame in frames]
            labels = [torch.stack([~first, first]).float()]
            for time_ in range(1, len(units) - 1):
                seen = [0, *range(max(1, time_ - task.context), time_)]
                affinity = torch.exp(units[time_] @ torch.stack([units[n] for n in seen]).transpose(1, 2) / 0.1) * near
                affinity = affinity.transpose(1, 2).flatten(0, 1)
                affinity[affinity < affinity.topk(task.topk, 0)[0][-1]] = 0
                labels.append(torch.cat([labels[n] for n in seen], 1) @ (affinity / affinity.sum(0)))
                maps = labels[-1].view(1, 2, grid.rows, grid.cols)
                wide = torch.nn.functional.interpolate(maps, truths[0].shape, mode="bilinear")[0]
                low, high = wide.amin((1, 2), keepdim=True), wide.amax((1, 2), keepdim=True)
                chosen = ((wide - low) / (high - low)).argmax(0).numpy() == 1
                found.append((chosen & truths[time_]).sum() / (chosen | truths[time_]).sum())
                mine, right = boundaries.boundary(chosen), boundaries.boundary(truths[time_])
                hits = (mine & ndimage.binary_dilation(right, disk)).sum() / max(mine.sum(), 1)
                reached = (right & ndimage.binary_dilation(mine, disk)).sum() / max(right.sum(), 1)
                found.append(2 * hits * reached / max(hits + reached, 1e-9))
    return found


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

    stack = of["0"].stacks[0]
    text = torch.randn(len(stack.sites), options.heads, options.dim)
    texts = {WORDS: dict(zip(stack.sites, text, strict=True))}
    named = Image(id="image", group="", cluster="", image="0", category=WORDS, mask=labelled[0].mask)
    others = tuple(one.mask for one in labelled[1:3])
    meant = Expression(id="said", group="", cluster="", image="0", text=WORDS, mask=labelled[0].mask, others=others)
    together = ImageSet(id="set", group="", cluster="", members=labelled)
    words: list[tuple[str, Any, Image | Expression]] = [
        ("segmentation", Segmentation(), named),
        ("referring", Referring(), meant),
    ]
    for name, asked, sample in words:
        line(
            name,
            lambda asked=asked, sample=sample: list(asked.score(sample, of, texts)),
            lambda sites, sample=sample: words_loop(sample, of, text, sites),
            options,
        )
    cluster = Cosegmentation()
    line(
        "cosegmentation",
        lambda: list(cluster.score(together, of, {})),
        lambda sites: cluster_loop(together, of, cluster, sites),
        options,
    )
    name_of = tuple(str(n) for n in range(len(regions)))
    clip = Clip(id="clip", group="", cluster="", frames=name_of, objects=tuple((one.mask,) for one in labelled))
    carried = TemporalCorrespondence()
    line(
        f"temporal_correspondence, {len(regions)} frames",
        lambda: list(carried.score(clip, of, {})),
        lambda sites: dino_loop(clip, of, carried, sites),
        options,
    )


if __name__ == "__main__":
    main()
