"""How much keys depend on the image: for every layer and key-value head, their variance over images.

At a position p of the grid, over images, S[l,h,p] = trace of the covariance / mean squared norm; S[l,h] is its mean
over positions. Near 0 the key says where it stands and not what is there: Liu et al. find such *input-agnostic* keys in
later layers [P], by their variance over images [S]; this formula, the halves and the subtracted bias are ours [D].

- The covariance is divided by n - 1, so S is about 1 where keys have no mean, and may exceed it a little. Where a key
  is 0 in every image it does not vary: S = 0.
- A rotation at a fixed position changes neither trace nor norm: `key` and `key_unrotated` differ by rounding alone, and
  both are kept as a check of each other.
- A large bias of the key projection (Qwen2 has one) adds to the norm and not to the trace: it makes S small, whatever
  the image does. So `key_unrotated` is also measured with the bias subtracted; without a bias both rows are equal.
- Halves are of clusters (images that share a clip or a pair stay together), drawn by the job's seed.

One shard holds it all: sums are of every image, and a job that died begins again. What is in memory is one block and,
a half, a mean of every key in float64: 167 MB for 28 layers x 4 heads x 729 positions x 128, both parts. Images are
added one after another in the dataset's order and by one thread (Welford 1962), halves joined as in Chan et al. 1983:
equal jobs give equal bytes.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from vkvdb.errors import BadOption
from vkvdb.extraction import Advance, OnStep, Source, find_model, image_list, limited_images, versions, wanted_sites
from vkvdb.jobs import Calibrate, Job
from vkvdb.paths import Home
from vkvdb.samples import Sample
from vkvdb.types import Site, SiteShape

if TYPE_CHECKING:
    import torch

    from vkvdb.store import ImageRow, Store

VERSION = 1
FEWEST = 4  # images: a variance in each of two halves
UNBIASED = "key_unrotated"

Floats = npt.NDArray[np.float64]


class HasKeys(Protocol):
    """What a loaded model with a decoder has beyond `vkvdb.types.Model`."""

    def key_bias(self, layer: int) -> torch.Tensor | None:
        """The key projection's bias of a layer, (heads, dim); None where it has none."""
        ...


class Moments:
    """Mean (..., dim) and scatter (...), the summed squared distance from it, of vectors that come one by one."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.n = 0
        self.mean: Floats = np.zeros(shape)
        self.scatter: Floats = np.zeros(shape[:-1])

    def add(self, vectors: npt.NDArray[Any]) -> None:
        """Take one more of each, (..., dim)."""
        self.n += 1
        before = vectors - self.mean
        self.mean += before / self.n
        before *= vectors - self.mean
        self.scatter += before.sum(-1)

    def joined(self, other: Moments) -> Moments:
        """The moments of both together."""
        both = Moments(self.mean.shape)
        both.n = self.n + other.n
        apart = other.mean - self.mean
        both.mean = self.mean + apart * (other.n / both.n)
        both.scatter = self.scatter + other.scatter + (apart**2).sum(-1) * (self.n * other.n / both.n)
        return both

    def variance(self, shift: npt.NDArray[Any] | float = 0.0) -> Floats:
        """Trace of the covariance / mean squared norm, (...), of the vectors minus `shift`; 0 where both are 0."""
        norm = self.scatter / self.n + ((self.mean - shift) ** 2).sum(-1)
        trace = self.scatter / (self.n - 1)
        found: Floats = np.divide(trace, norm, out=np.zeros_like(trace), where=norm > 0)
        return found


def key_sites(shapes: Iterable[SiteShape], layers: Sequence[int] | None, parts: Sequence[str]) -> tuple[SiteShape, ...]:
    """The decoder's sites that are measured. Raises BadOption: a model without a decoder, a part that is no key."""
    shapes = tuple(shapes)
    if not any(s.site.stage == "decoder" for s in shapes):
        raise BadOption(option="--model", value="without a decoder", why="keys are read from a decoder's cache")
    if bad := [p for p in parts if p not in Calibrate.parts]:
        raise BadOption(option="--parts", value=bad[0], why=f"calibrate reads {' and '.join(Calibrate.parts)}")
    return tuple(s for s in wanted_sites(shapes, layers, parts) if s.site.stage == "decoder")


def halves(rows: Sequence[ImageRow], samples: Iterable[Sample], seed: int) -> list[int]:
    """1 or 2 for each image: two halves about equal in size, drawn by the seed, that share no cluster."""
    parent = {row.name: row.name for row in rows}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    ties: dict[str, list[str]] = {}
    for sample in samples:
        ties.setdefault(sample.cluster, []).extend(name for name in sample.images() if name in parent)
    for names in ties.values():
        for name in names[1:]:
            parent[root(name)] = root(names[0])
    clusters: dict[str, list[str]] = {}
    for row in rows:
        clusters.setdefault(root(row.name), []).append(row.name)
    drawn = list(clusters.values())
    random.Random(seed).shuffle(drawn)
    drawn.sort(key=len, reverse=True)  # large ones first, so that small ones can make up for them
    sizes, half = [0, 0], {}
    for names in drawn:
        smaller = int(sizes[1] < sizes[0])
        sizes[smaller] += len(names)
        half.update(dict.fromkeys(names, smaller + 1))
    if min(sizes) < FEWEST // 2:
        why = f"at least {FEWEST} images that are independent of each other are expected: two in each of two halves"
        raise BadOption(option="--limit", value=len(rows), why=why)
    return [half[row.name] for row in rows]


class Calibrating:
    """A calibrate job under way."""

    shards = 1

    def __init__(self, job: Job, home: Home, store: Store, on_step: OnStep) -> None:
        spec = job.spec
        assert isinstance(spec, Calibrate)
        every = store.images(spec.capture.dataset)
        self.job, self.store, self._on_step, self.of = job, store, on_step, len(every)
        rows, selection = image_list(every, limited_images(every, spec.limit, spec.seed))
        assert selection == spec.capture.selection
        shapes = key_sites(find_model(job, home).sites(), spec.layers, spec.parts)
        self.source = Source(job, home, store, rows, shapes)
        self.total = len(rows)
        self._half = halves(rows, (s for _, s in store.samples(spec.capture.dataset)), spec.seed)
        self._has_bias = False

    def units(self, shard: int) -> int:
        """Images."""
        return self.total

    def done(self, shard: int) -> bool:
        """Whether the variances are published."""
        return shard in self.store.row_shards("key_variance", self.job.id, self.job.edition)

    def run_shard(self, shard: int, advance: Advance) -> None:
        """Measure all images, and publish."""
        moments = self._moments(advance)
        rows = [row for site in sorted(moments) for row in self._rows(site, *moments[site])]
        self._on_step("shard computed")
        names = ("site", "head", "half", "unbiased", "n", "value")
        columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        facts = {"images": self.total, "device": self.source.device, "bias": self._has_bias}
        self.store.write_rows("key_variance", self.job.id, self.job.edition, shard, columns, facts)

    def _moments(self, advance: Advance) -> dict[Site, tuple[Moments, Moments]]:
        """{site: moments (heads, rows, cols, dim) of the first half and of the second}. Raises BadOption: two grids."""
        found: dict[Site, tuple[Moments, Moments]] = {}
        grid: tuple[int, int] | None = None
        for block in range(self.source.blocks):
            first = block * self.source.spec.block
            for number, capture in enumerate(self.source.read(block), first):
                here = capture.grid.rows, capture.grid.cols
                if grid not in (None, here):
                    raise two_grids(f"{grid[0]} x {grid[1]}", f"{here[0]} x {here[1]}")
                grid = here
                for site, tokens in capture.tokens.items():
                    if site not in found:
                        found[site] = (Moments(tokens.shape), Moments(tokens.shape))
                    found[site][self._half[number] - 1].add(tokens.cpu().double().numpy())
            advance(len(self.source.images(block)))
        return found

    def _rows(self, site: Site, one: Moments, two: Moments) -> Iterable[tuple[int, int, int, bool, int, float]]:
        """Rows (site, head, half, unbiased, n, value) of a site."""
        for half, moments in enumerate((one.joined(two), one, two)):
            for unbiased in (False, True)[: 1 + (site.part == UNBIASED)]:
                shift = self._bias(site.layer) if unbiased else 0.0
                values = moments.variance(shift).mean((1, 2))
                for head, value in enumerate(values.tolist()):
                    yield site.number, head, half, unbiased, moments.n, value

    def _bias(self, layer: int) -> npt.NDArray[Any] | float:
        """The key projection's bias, (heads, 1, 1, dim), or 0."""
        model: Any = self.source.model
        keys: HasKeys = model
        bias = keys.key_bias(layer)
        if bias is None:
            return 0.0
        self._has_bias = True
        array: npt.NDArray[Any] = bias.detach().cpu().double().numpy()
        return array[:, None, None]

    def finish(self) -> dict[str, Any]:
        """Publish the token map; facts for the job's manifest."""
        self.source.publish_token_map()
        shards: Mapping[int, Any] = self.store.row_shards("key_variance", self.job.id, self.job.edition)
        return {
            "n": self.total,
            "of": self.of,
            "shards": [],
            "key_variance": [shards[n] for n in sorted(shards)],
            "captured": self.source.facts(),
            "device": self.source.device,
            "versions": versions(),
            "notes": {"bias": shards[0]["bias"]},
        }

    def close(self) -> None:
        """Nothing is held open."""


def two_grids(one: str, other: str) -> BadOption:
    """What is said of images whose tokens do not lie on one grid."""
    why = f"keys are compared position by position, and images give {one} and {other} cells; type --square N"
    return BadOption(option="--square", value="not given", why=why)


def open(job: Job, home: Home, store: Store, on_step: OnStep) -> Calibrating:  # noqa: A001 - the worker's word for it
    """Begin or go on with a calibrate job."""
    return Calibrating(job, home, store, on_step)
