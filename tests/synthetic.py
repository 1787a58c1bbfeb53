"""A store with made-up datasets, models and scores, published as the real ones are."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from vkvdb.jobs import CaptureSpec, Job, ModelSpec, Provenance, Score, digest, to_json
from vkvdb.samples import Image, Mask
from vkvdb.store import ImageRow, ScoreRows, Store
from vkvdb.types import CEILING, POSITION, Site

PARTS = ("key", "key_unrotated", "value")
WHEN = "2026-01-02T03:04:05+00:00"
MASK = Mask(64, 48, "0")

# (site, head) -> the mean that its samples scatter around; NaN: not defined
Truth = Callable[[Site, int], float]


@dataclass
class Made:
    """A model that was published."""

    spec: ModelSpec
    name: str
    sites: list[tuple[Site, int]]  # with its heads


@dataclass
class World:
    """What was published, so that tests need no constants."""

    store: Store
    datasets: dict[str, str] = field(default_factory=dict)
    models: dict[str, Made] = field(default_factory=dict)

    def dataset(
        self,
        name: str = "coco-val",
        images: int = 24,
        classes: Sequence[str] = ("cat", "dog", "fish"),
        labels: Sequence[tuple[str, str]] = (),
    ) -> str:
        """An image is a cluster and has two samples, of different classes; or samples of given (group, cluster)."""
        rows = [
            ImageRow(image=n, name=f"i{n}", path=f"{n}.jpg", width=64, height=48, sha256=f"{n:064x}", bytes=1000 + n)
            for n in range(images)
        ]
        samples = [
            Image(
                id=f"{n}.{k}",
                group=classes[(n + k) % len(classes)],
                cluster=f"i{n}",
                image=f"i{n}",
                category="x",
                mask=MASK,
            )
            for n in range(images)
            for k in range(2)
        ]
        if labels:
            samples = [
                Image(id=str(n), group=group, cluster=cluster, image="i0", category="x", mask=MASK)
                for n, (group, cluster) in enumerate(labels)
            ]
        facts = {
            "name": name,
            "adapter": name.partition("-")[0],
            "adapter_version": 1,
            "split": name.partition("-")[2],
            "root": "/data",
            "images": images,
            "samples": {"image": len(samples)},
            "problems": [{"where": "7.jpg", "what": "no mask"}],
            "created": WHEN,
            "host": "here",
            "versions": {"python": "3.11"},
        }
        self.datasets[name] = digest([name, images])
        self.store.write_dataset(self.datasets[name], rows, samples, facts)
        return self.datasets[name]

    def model(
        self,
        name: str,
        family: str = "llava_onevision",
        *,
        layers: int = 3,
        heads: int = 2,
        variant: str = "",
        family_version: int = 1,
    ) -> Made:
        """A language model with `heads` key-value heads, or an encoder where there are none."""
        checkpoint = digest(name.partition("@")[0]) if family != "pixels" else ""
        spec = ModelSpec(checkpoint=checkpoint, family=family, family_version=family_version, variant=variant)
        if heads:
            sites = [(Site("encoder", 26, "hidden"), 1), (Site("projector", 0, "hidden"), 1)]
            sites += [(Site("decoder", n, part), heads) for n in range(layers) for part in PARTS]
        else:
            sites = [(Site("encoder", n, "hidden"), 1) for n in range(layers)]
        body = {
            "kind": "model",
            "hash": digest(to_json(spec)),
            "name": name,
            "path": "",
            "checkpoint": checkpoint,
            "family": family,
            "family_version": family_version,
            "variant": variant,
            "dtype": "float32",
            "sites": [{"stage": s.stage, "layer": s.layer, "part": s.part, "heads": h, "dim": 8} for s, h in sites],
            "parameters": None,
            "created": WHEN,
            "host": "here",
            "files": {},
        }
        self.store.publish_json(self.store.model_path(body["hash"]), body)
        self.models[name] = Made(spec, name, sites)
        return self.models[name]

    def score(
        self,
        model: str,
        truth: Truth | float = 0.5,
        *,
        dataset: str = "coco-val",
        task: str = "correspondence",
        task_version: int = 1,
        metrics: Sequence[str] = ("pck",),
        edition: int = 0,
        noise: float = 0.2,
        seconds: int = 10,
        shards: int = 2,
        limit: int | None = None,
        notes: dict[str, Any] | None = None,
        publish: bool = True,
        **capture: Any,
    ) -> str:
        """A finished job; its id. Values scatter by sample around `truth`, floor and ceiling among them."""
        made = self.models[model]
        spec = Score(
            capture=CaptureSpec(model=made.spec, dataset=self.datasets[dataset], **capture),
            task=task,
            task_version=task_version,
            limit=limit,
        )
        job = Job(spec=spec, provenance=Provenance(model=made.name, dataset=dataset), edition=edition)
        there = self.store.dataset(self.datasets[dataset])["samples"]["image"]
        samples = np.arange(there if limit is None else limit)
        curves = [(s, h) for s, heads in made.sites for h in ([*range(heads), -1] if s.stage == "decoder" else [-1])]
        curves += [(POSITION, -1), (CEILING, -1)]
        columns: dict[str, list[Any]] = {k: [] for k in ("sample", "site", "head", "metric", "value", "weight")}
        draw = np.random.default_rng(zlib.crc32(f"{job.id} {edition}".encode()))
        for metric in metrics:
            for site, head in curves:
                mean = truth(site, head) if callable(truth) else truth
                columns["sample"].append(samples)
                columns["site"].append(np.full(len(samples), site.number))
                columns["head"].append(np.full(len(samples), head))
                columns["metric"] += [metric] * len(samples)
                columns["value"].append(mean + noise * draw.standard_normal(len(samples)))
                columns["weight"].append(1 + samples % 3)
        arrays = {k: np.concatenate(v) for k, v in columns.items() if k != "metric"}
        kinds = {"sample": np.int32, "site": np.int16, "head": np.int8, "value": np.float32, "weight": np.float32}
        whole = {k: arrays[k].astype(t) for k, t in kinds.items()}
        cut = np.array_split(np.arange(len(columns["metric"])), shards)
        for number, rows in enumerate(cut):
            part: dict[str, Any] = {k: v[rows] for k, v in whole.items()}
            self.store.write_scores(
                job.id, edition, number, ScoreRows(**part, metric=[columns["metric"][i] for i in rows]), {"seconds": 1}
            )
        if publish:
            self.publish_job(job, n=len(samples), of=there, seconds=seconds, notes=notes)
        return job.id

    def publish_job(self, job: Job, *, n: int, of: int, seconds: int = 10, notes: dict[str, Any] | None = None) -> None:
        """The manifest that makes a job done."""
        shards = self.store.score_shards(job.id, job.edition)
        body = {
            "kind": "job",
            "job": job.id,
            "edition": job.edition,
            "spec": to_json(job.spec),
            "provenance": asdict(job.provenance),
            "attempt": 1,
            "n": n,
            "of": of,
            "started": WHEN,
            "finished": f"2026-01-02T03:05:{seconds:02d}+00:00",
            "seconds": float(seconds),
            "host": "here",
            "versions": {"python": "3.11"},
            "device": "cpu",
            "shards": [shards[k] for k in sorted(shards)],
            **{
                kind: list(self.store.row_shards(kind, job.id, job.edition).values())
                for kind in ("answers", "key_variance")
            },
            "captured": {"blocks": 3},
            "notes": notes or {},
        }
        self.store.publish_json(self.store.job_path(job.id, job.edition), body)


def small(store: Store) -> World:
    """Two models and an encoder on one dataset."""
    world = World(store)
    world.dataset()
    world.model("onevision")
    world.model("onevision@random:0", variant="random:0")
    world.model("dinov2_small", "dinov2", layers=4, heads=0)
    world.score("onevision", lambda s, h: 0.3 + 0.1 * s.layer * (s.part == "value") + 0.02 * h)
    world.score("onevision@random:0", 0.1)
    world.score("dinov2_small", lambda s, h: 0.2 + 0.05 * s.layer)
    return world


def wave(layers: int, top: float = 0.43, floor: float = 0.2) -> Truth:
    """A flow as the paper tells it: a rise over the first third, a peak, a slow fall; keys below values."""

    def truth(site: Site, head: int) -> float:
        if site == POSITION:
            return 0.05
        if site == CEILING:
            return 0.97
        if site.stage == "encoder":
            return 0.34
        if site.stage == "projector":
            return 0.31
        x = site.layer / (layers - 1)
        rise = np.exp(-(((x - 0.35) / (0.2 if x < 0.35 else 0.5)) ** 2))
        part = {"value": 1.0, "key": 0.6, "key_unrotated": 0.75}[site.part]
        own = 0.72 + 0.28 * np.sin(1.7 * head + 5 * x) ** 2 if head >= 0 else 0.97
        return float(floor + (top - floor) * rise * part * own)

    return truth


def rich(store: Store, layers: int = 28, heads: int = 4, images: int = 60) -> World:
    """A language model with every reference that a flow chart draws, on one dataset and task."""
    world = World(store)
    world.dataset(images=images)
    notes = {"title": "self-warp (geometric), not semantic"}
    common: dict[str, Any] = {"metrics": ("pck_image", "pck_point"), "notes": notes}
    world.model("llava-onevision-7b", layers=layers, heads=heads)
    world.score("llava-onevision-7b", wave(layers), **common)
    world.model("llava-onevision-7b@random:0", layers=layers, heads=heads, variant="random:0")
    world.score("llava-onevision-7b@random:0", lambda s, h: 0.12 + 0.02 * np.sin(s.layer + h), **common)
    world.model("llava-onevision-7b@blank", layers=layers, heads=heads, variant="blank")
    world.score("llava-onevision-7b@blank", 0.045, noise=0.03, **common)
    world.model("siglip-so400m", "siglip", layers=28, heads=0)
    world.score("siglip-so400m", lambda s, h: 0.1 + 0.36 * np.sin(s.layer / 27 * 2.5), **common)
    world.model("dinov2_small", "dinov2", layers=13, heads=0)
    world.score("dinov2_small", lambda s, h: 0.08 + 0.46 * s.layer / 12, **common)
    world.model("dinov2_small@random:0", "dinov2", layers=13, heads=0, variant="random:0")
    world.score("dinov2_small@random:0", 0.1, **common)
    world.model("pixels", "pixels", layers=1, heads=0)
    world.score("pixels", 0.08, noise=0.1, **common)
    return world
