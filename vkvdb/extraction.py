"""Captures: images in blocks, from the store where they lie there, from the model where they do not.

Images are captured in blocks of B consecutive images of the job's image list, always whole, so a tensor's bytes depend
on (capture, block) alone: whoever reads it, in whatever order, from store or stream, reads the same bytes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vkvdb import prefixes
from vkvdb.errors import BadCheckpoint, BadOption, NotIngested
from vkvdb.jobs import CaptureSpec, Extract, Job, digest, to_json
from vkvdb.paths import Home
from vkvdb.types import Capture, LoadOptions, Model, Prefixing, Site, SiteShape, TokenGrid

if TYPE_CHECKING:
    import torch

    from vkvdb.models._checkpoint import Checkpoint
    from vkvdb.store import ImageRow, Store

SHARD_IMAGES = 256
SHARD_BYTES = 1 << 30

Advance = Callable[[int], None]
OnStep = Callable[[str], None]


def wanted_sites(
    shapes: Iterable[SiteShape], layers: Sequence[int] | None, parts: Sequence[str]
) -> tuple[SiteShape, ...]:
    """The sites that a job reads: decoder sites of those layers and parts, and tower and projector as references.

    A model without a decoder is read at all its sites, or at those of `layers`.
    Raises BadOption when a layer is not there.
    """
    shapes = tuple(shapes)
    main = "decoder" if any(s.site.stage == "decoder" for s in shapes) else "encoder"
    depth = 1 + max(s.site.layer for s in shapes if s.site.stage == main)
    if layers is not None and (bad := [n for n in layers if n >= depth]):
        raise BadOption(option="--layers", value=bad[0], why=f"the model has layers 0 to {depth - 1}")
    chosen = []
    for shape in shapes:
        site = shape.site
        if site.stage == main and layers is not None and site.layer not in layers:
            continue
        if site.stage == "decoder" and site.part not in parts:
            continue
        chosen.append(shape)
    return tuple(chosen)


def image_list(rows: Sequence[ImageRow], needed: Iterable[str] | None) -> tuple[list[ImageRow], str]:
    """The images that a job's blocks are made of, in dataset order, and the hash of the list ("" for all of them)."""
    if needed is None:
        return list(rows), ""
    names = set(needed)
    chosen = [row for row in rows if row.name in names]
    return (chosen, "") if len(chosen) == len(rows) else (chosen, digest([row.image for row in chosen]))


def dataset_root(home: Home, store: Store, manifest: dict[str, Any]) -> Path:
    """Where a dataset's images lie on this host: where it was last ingested from, else where it was first.

    Raises NotIngested when the folder is gone.
    """
    roots = json.loads(home.roots.read_text(encoding="utf-8")) if home.roots.is_file() else {}
    root = roots.get(manifest["hash"], manifest["root"])
    path = Path(root) if root else store.dataset_folder(manifest["hash"])
    if not path.is_dir():
        raise NotIngested(name=manifest["name"], known=f"its root {path} is gone", hint=" --root WHERE-IT-IS-NOW")
    return path


class Source:
    """The blocks of one capture. The model is loaded at the first block that the store can't give."""

    def __init__(
        self, job: Job, home: Home, store: Store, rows: Sequence[ImageRow], shapes: Sequence[SiteShape]
    ) -> None:
        self.spec: CaptureSpec = job.spec.capture
        self.rows = list(rows)
        self.shapes = tuple(shapes)
        self.sites = [s.site for s in self.shapes]
        self.root = dataset_root(home, store, store.dataset(self.spec.dataset))
        self.blocks = -(-len(self.rows) // self.spec.block)
        self.captured = 0
        self.from_store = 0
        self.seconds = 0.0
        samples = (sample for _, sample in store.samples(self.spec.dataset))
        self._texts = prefixes.texts(self.spec.prefix, (row.name for row in self.rows), samples)
        self._job = job
        self._home = home
        self._store = store
        self._stored = store.open_capture(self.spec.id)
        self._model: Model | None = None

    @property
    def model(self) -> Model:
        """The loaded model; loaded once."""
        if self._model is None:
            self._model = load_model(self._job, self._home)
        return self._model

    @property
    def device(self) -> str:
        """Where the model ran; "none" when it never had to."""
        return "none" if self._model is None else self._model.device

    def images(self, block: int) -> list[ImageRow]:
        """The rows of a block."""
        return self.rows[block * self.spec.block : (block + 1) * self.spec.block]

    def read(self, block: int) -> list[Capture]:
        """A block's captures, from the store if all of it lies there."""
        rows = self.images(block)
        if self._stored.has([r.image for r in rows], self.sites):
            return self._from_store(rows)
        return self.capture(block)

    def capture(self, block: int) -> list[Capture]:
        """Run the model on a block."""
        from vkvdb.images import open_image

        rows = self.images(block)
        model = self.model
        start = time.perf_counter()
        images = [open_image(self.root, row) for row in rows]
        if self._texts:
            assert isinstance(model, Prefixing)  # planned for a model with a decoder
            read = model.capture_after([self._texts[row.name] for row in rows], images, self.sites)
        else:
            read = model.capture(images, self.sites)
        self.captured += 1
        self.seconds += time.perf_counter() - start
        return [
            Capture(row.name, self.spec.view, grid, stacks, (row.width, row.height))
            for row, (grid, stacks) in zip(rows, read, strict=True)
        ]

    def _from_store(self, rows: Sequence[ImageRow]) -> list[Capture]:
        from vkvdb.models._capture import of

        read = self._stored.read([r.image for r in rows], self.sites)
        self.from_store += 1
        return [
            Capture(row.name, self.spec.view, grid, of(tokens, self.shapes), (row.width, row.height))
            for row, (grid, tokens) in zip(rows, read, strict=True)
        ]

    def publish_token_map(self) -> None:
        """Publish, once for a capture, what each position of its images is; not for models without a sequence."""
        found = find_model(self._job, self._home)
        if hasattr(found.code, "token_map") and not self._store.has_token_map(self.spec.id):
            columns = token_rows(found, self.spec, self.rows)
            self._store.write_token_map(self.spec.id, columns, {"spec": to_json(self.spec)})

    def facts(self) -> dict[str, Any]:
        """What this run did, for the job's manifest."""
        images = self.captured * self.spec.block
        return {
            "blocks": self.blocks,
            "captures": self.captured,
            "from_store": self.from_store,
            "images": len(self.rows),
            "per_image": round(images / len(self.rows), 3) if self.rows else 0.0,
            "seconds": round(self.seconds, 3),
        }


def find_model(job: Job, home: Home) -> Checkpoint:
    """The job's checkpoint, proven to be the one that it was queued for. Raises BadCheckpoint."""
    from vkvdb.models._checkpoint import resolve

    found = resolve(job.provenance.model, home)
    if found.spec != job.spec.capture.model:
        why = "its files or its family's version changed since the job was queued"
        raise BadCheckpoint(name=job.provenance.model, why=why, hint="queue it again")
    return found


def load_options(job: Job) -> LoadOptions:
    """How the job wants its model loaded; texts that differ by image come with the images."""
    c, p = job.spec.capture, job.provenance
    return LoadOptions(
        dtype=c.dtype,
        attention=c.attention,
        quantisation=c.quantisation,
        prefix="" if prefixes.parse(c.prefix) else c.prefix,
        square=c.square,
        view=c.view,
        interventions=c.interventions,
        device=p.device,
        device_map=p.device_map,
    )


class _Loaded:
    """The last model stays loaded: jobs of one model usually follow each other in the queue."""

    key: ClassVar[object] = None
    model: ClassVar[Model | None] = None


def load_model(job: Job, home: Home) -> Model:
    """Load the job's model, or take the one of the job before when it is the same, loaded the same way."""
    from vkvdb.models._checkpoint import load

    found, options = find_model(job, home), load_options(job)
    key = (found.id, options)
    if _Loaded.model is None or _Loaded.key != key:
        _Loaded.model = None  # frees the old model's memory before the new one is read
        _Loaded.model, _Loaded.key = load(found, options), key
    return _Loaded.model


def versions() -> dict[str, str]:
    """The versions that could move a number's last digits."""
    import platform
    from importlib.metadata import version

    from vkvdb import __version__

    return {
        "python": platform.python_version(),
        "vkvdb": __version__,
        **{name: version(name) for name in ("torch", "transformers", "numpy", "pillow", "safetensors")},
    }


def bytes_per_image(
    checkpoint: Checkpoint, shapes: Sequence[SiteShape], capture: CaptureSpec, rows: Sequence[ImageRow]
) -> int:
    """What an image's tokens weigh at some sites, averaged over the images of a job."""
    width = {"float16": 2, "bfloat16": 2}.get(capture.dtype or checkpoint.dtype, 4)
    config, processor = checkpoint.config, checkpoint.processor
    cells = [
        checkpoint.code.cells(config, processor, r.width, r.height, capture.square, view=capture.view) for r in rows
    ]
    return round(sum(s.heads * s.dim for s in shapes) * width * sum(cells) / max(1, len(cells)))


def token_rows(checkpoint: Checkpoint, capture: CaptureSpec, rows: Iterable[ImageRow]) -> dict[str, list[Any]]:
    """The token map as columns: for every size of the images, a row for each position of an image in the prompt.

    These are the positions that a capture's view is read among: without tiles, unless it is of the tiles.
    """
    code: Any = checkpoint.code
    config, processor = checkpoint.config, checkpoint.processor
    names = ("width", "height", "place", "kind", "view", "tile", "row", "col", "left", "top", "right", "bottom")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for width, height in sorted({(row.width, row.height) for row in rows}):
        told = code.token_map(config, processor, width, height, square=capture.square, whole=capture.view != "base")
        for place, token in enumerate(told.tokens()):
            box = token.box or (None, None, None, None)
            row = (width, height, place, token.kind, token.view, token.tile, token.row, token.col, *box)
            for name, value in zip(names, row, strict=True):
                columns[name].append(value)
    return columns


class Extraction:
    """An extract job under way: blocks captured and kept, shard by shard."""

    def __init__(self, job: Job, home: Home, store: Store, on_step: OnStep) -> None:
        spec = job.spec
        assert isinstance(spec, Extract)
        rows = store.images(spec.capture.dataset)
        self.of = len(rows)
        chosen = limited_images(rows, spec.limit, spec.seed)
        rows, selection = image_list(rows, chosen)
        assert selection == spec.capture.selection
        checkpoint = find_model(job, home)
        shapes = wanted_sites(checkpoint.sites(), spec.layers, spec.parts)
        self.source = Source(job, home, store, rows, shapes)
        self.total = len(rows)
        self._capture = spec.capture.id
        self._store = store
        self._on_step = on_step
        # By all that the model has, not by what is wanted: shards of one capture are cut alike, whatever the sites.
        each = bytes_per_image(checkpoint, checkpoint.sites(), spec.capture, rows)
        block = spec.capture.block
        self._shard_blocks = max(1, min(SHARD_IMAGES, SHARD_BYTES // max(1, each)) // block)
        self.shards = -(-self.source.blocks // self._shard_blocks)

    def _blocks(self, shard: int) -> range:
        return range(shard * self._shard_blocks, min((shard + 1) * self._shard_blocks, self.source.blocks))

    def units(self, shard: int) -> int:
        """Images of a shard."""
        return sum(len(self.source.images(b)) for b in self._blocks(shard))

    def done(self, shard: int) -> bool:
        """Whether every image of the shard lies in the store at every wanted site."""
        ids = [r.image for b in self._blocks(shard) for r in self.source.images(b)]
        return self._store.open_capture(self._capture).has(ids, self.source.sites)

    def run_shard(self, shard: int, advance: Advance) -> None:
        """Capture a shard and publish it."""
        images: list[int] = []
        grids: list[TokenGrid] = []
        tokens: dict[Site, list[torch.Tensor]] = {site: [] for site in self.source.sites}
        for block in self._blocks(shard):
            rows = self.source.images(block)
            for row, capture in zip(rows, self.source.capture(block), strict=True):
                images.append(row.image)
                grids.append(capture.grid)
                for site, values in capture.tokens.items():
                    tokens[site].append(values)
            advance(len(rows))
        self._on_step("shard computed")
        facts = {"spec": to_json(self.source.spec), "device": self.source.model.device}
        self._store.write_capture(self._capture, shard, images, grids, tokens, facts)

    def finish(self) -> dict[str, Any]:
        """Publish the token map; facts for the job's manifest."""
        self.source.publish_token_map()
        shards = self._store.capture_shards(self._capture)
        return {
            "n": self.total,
            "of": self.of,
            "shards": shards,
            "captured": self.source.facts(),
            "device": self.source.device,
            "versions": versions(),
            "notes": {"capture": self._capture},
        }

    def close(self) -> None:
        """Nothing is held open."""


def limited_images(rows: Sequence[ImageRow], limit: int | None, seed: int) -> list[str] | None:
    """Names of a seeded choice of images, or None for all."""
    import random

    if limit is None or limit >= len(rows):
        return None
    return [row.name for row in random.Random(seed).sample(list(rows), limit)]


def open(job: Job, home: Home, store: Store, on_step: OnStep) -> Extraction:  # noqa: A001 - the worker's word for it
    """Begin or go on with an extract job."""
    return Extraction(job, home, store, on_step)
