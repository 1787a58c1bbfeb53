"""Scores: samples in the order of their images' blocks, every site and head at once, blocks kept while they are needed.

An image usually stands in many samples (SPair's 12,234 pairs use 1,800 images). Samples are therefore scored in the
order of their blocks, and blocks are kept in memory and on the local disk (`vkvdb.caching`).
"""

from __future__ import annotations

import dataclasses
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vkvdb import prefixes, registry
from vkvdb.caching import Cache, Scratch, weight
from vkvdb.errors import BadDataset, BadOption
from vkvdb.extraction import Advance, OnStep, Source, find_model, image_list, versions, wanted_sites
from vkvdb.jobs import Job, Score
from vkvdb.paths import Home
from vkvdb.samples import Sample
from vkvdb.types import Capture, Scores, Site, Task, TokenStack

if TYPE_CHECKING:
    import numpy as np
    import torch

    from vkvdb.store import ImageRow, ScoreRows, Store

SHARD_SAMPLES = 128


def make_task(name: str, parameters: Mapping[str, Any]) -> Task:
    """The task of a name with parameters as text or values, typed by its fields.

    Raises UnknownName for the task, BadOption for a parameter that it does not have or a value that does not fit.
    """
    cls = registry.load("tasks", name)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    given: dict[str, Any] = {}
    for key, value in parameters.items():
        if key not in fields:
            there = ", ".join(f"{f.name}={f.default}" for f in fields.values()) or "none"
            raise BadOption(option="-p", value=key, why=f"task {name} has the parameters {there}")
        given[key] = _typed(key, value, fields[key].default)
    task: Task = cls(**given)
    return task


def _typed(key: str, value: Any, default: Any) -> Any:
    if not isinstance(value, str) or isinstance(default, str):
        return value
    if isinstance(default, bool):
        if value.lower() not in ("true", "false"):
            raise BadOption(option="-p", value=f"{key} {value}", why="true or false is expected")
        return value.lower() == "true"
    try:
        return type(default)(value)
    except (TypeError, ValueError) as error:
        raise BadOption(option="-p", value=f"{key} {value}", why=f"a value like {default!r} is expected") from error


def changed(task: Task) -> tuple[tuple[str, Any], ...]:
    """The parameters of a task that are not its defaults, sorted: what goes into a specification."""
    fields = dataclasses.fields(task)  # type: ignore[arg-type]
    return tuple(sorted((f.name, getattr(task, f.name)) for f in fields if getattr(task, f.name) != f.default))


def choose(samples: Sequence[tuple[int, Sample]], limit: int | None, seed: int) -> list[tuple[int, Sample]]:
    """A seeded choice of samples that keeps the groups' proportions; all of them when no limit is given."""
    if limit is None or limit >= len(samples):
        return list(samples)
    groups: dict[str, list[tuple[int, Sample]]] = defaultdict(list)
    for item in samples:
        groups[item[1].group].append(item)
    ranked = []
    draw = random.Random(seed)
    for name in sorted(groups):
        members = groups[name]
        draw.shuffle(members)
        # Member k of n stands at (k + u) / n: cutting the sorted list anywhere takes the same share of every group.
        shift = draw.random()
        ranked += [((k + shift) / len(members), item) for k, item in enumerate(members)]
    ranked.sort(key=lambda r: (r[0], r[1][0]))
    return sorted((item for _, item in ranked[:limit]), key=lambda item: item[0])


def samples_of(
    task: Task, samples: Sequence[tuple[int, Sample]], task_name: str, dataset: str
) -> list[tuple[int, Sample]]:
    """The samples that a task takes. Raises BadDataset when there are none."""
    fitting = [(n, s) for n, s in samples if isinstance(s, task.takes)]
    if not fitting:
        kinds = ", ".join(sorted({s.kind for _, s in samples})) or "nothing"
        raise BadDataset(
            what=f"dataset {dataset} has no {task.takes.kind} for task {task_name}; it has {kinds}",
            expected="a dataset that has (vkvdb datasets list)",
        )
    return fitting


def among(task: Task, samples: Sequence[tuple[int, Sample]]) -> Task:
    """The task, told all samples that it takes where it asks for them: `among(samples) -> Task`.

    `naming` has its classes from there. Which images a sample needs must not depend on them.
    """
    own = getattr(task, "among", None)
    told: Task = own([sample for _, sample in samples]) if own else task
    return told


def order(blocks: Sequence[tuple[int, ...]]) -> list[int]:
    """The order in which samples are scored, each given as the blocks that its images lie in."""
    return sorted(range(len(blocks)), key=lambda n: (sorted(set(blocks[n])), n))


class Scoring:
    """A score job under way."""

    def __init__(self, job: Job, home: Home, store: Store, on_step: OnStep) -> None:
        spec = job.spec
        assert isinstance(spec, Score)
        self.job, self.spec, self.store, self._home, self._on_step = job, spec, store, home, on_step
        self.task = make_task(spec.task, dict(spec.parameters))
        manifest = store.dataset(spec.capture.dataset)
        every = samples_of(self.task, store.samples(spec.capture.dataset), spec.task, manifest["name"])
        self.task = among(self.task, every)
        self.of = len(every)
        prefix = spec.capture.prefix
        chosen = choose(every, spec.limit, spec.seed)
        chosen = prefixed(prefix, self.task, chosen, store.samples(spec.capture.dataset))
        rows, selection = plan_images(self.task, chosen, store.images(spec.capture.dataset), spec.limit, prefix)
        assert selection == spec.capture.selection
        shapes = wanted_sites(find_model(job, home).sites(), spec.layers, spec.parts)
        self.source = Source(job, home, store, rows, shapes)
        self._where = {row.name: divmod(n, spec.capture.block) for n, row in enumerate(rows)}
        self._needs = {n: self.task.needs(sample) for n, sample in chosen}
        blocks = [tuple(sorted({self._where[i][0] for i in self._needs[n].images})) for n, _ in chosen]
        ranks = order(blocks)
        self.samples = [chosen[r] for r in ranks]
        self._blocks = [blocks[r] for r in ranks]
        self.total = len(self.samples)
        self.shards = -(-self.total // SHARD_SAMPLES)
        self._cache: Cache | None = None
        self._texts: dict[str, dict[Site, torch.Tensor]] = {}

    def _range(self, shard: int) -> range:
        return range(shard * SHARD_SAMPLES, min((shard + 1) * SHARD_SAMPLES, self.total))

    def units(self, shard: int) -> int:
        """Samples of a shard."""
        return len(self._range(shard))

    def done(self, shard: int) -> bool:
        """Whether the shard's scores are published."""
        return shard in self.store.score_shards(self.job.id, self.job.edition)

    def run_shard(self, shard: int, advance: Advance) -> None:
        """Score a shard and publish it."""
        if self._cache is None:
            # Made at the first shard that is not done, so that a resumed job plans with the samples that are left.
            budget = self.job.provenance.cache_gb * 1e9
            done = self.store.score_shards(self.job.id, self.job.edition)
            left = [() if n // SHARD_SAMPLES in done else self._blocks[n] for n in range(self.total)]
            self._cache = Cache(left, budget, Scratch(self._home.root / "scratch"))
        rows = Columns()
        for n in self._range(shard):
            number, sample = self.samples[n]
            captures, texts = self._read(n)
            for scores in self.task.score(sample, captures, texts):
                rows.add(number, scores)
            self._cache.used(n)
            advance(1)
        self._on_step("shard computed")
        facts = {"samples": len(self._range(shard)), "device": self.source.device, "silent": self._silent()}
        self.store.write_scores(self.job.id, self.job.edition, shard, rows.done(), facts)

    def _read(self, n: int) -> tuple[dict[str, Capture], dict[str, dict[Site, torch.Tensor]]]:
        assert self._cache is not None
        needs = self._needs[self.samples[n][0]]
        held: dict[int, list[Capture]] = {}
        for block in self._blocks[n]:
            captures = self._cache.get(block, set(self._blocks[n]))
            if captures is None:
                before = self.source.captured
                captures = self.source.read(block)
                costly = self.source.captured > before  # else it lies in the store
                self._cache.put(block, captures, weight(captures), set(self._blocks[n]), costly=costly)
            held[block] = captures
        device = self.job.provenance.device
        captures_by_name = {}
        for name in needs.images:
            block, index = self._where[name]
            captures_by_name[name] = on_device(held[block][index], device)
        for words in needs.texts:
            if words not in self._texts:
                self._texts[words] = self.source.model.text(words, self.source.sites)
        return captures_by_name, {words: self._texts[words] for words in needs.texts}

    def _silent(self) -> list[str]:
        """The sites at which no words that were asked for have a vector; none where no words were."""
        spoken = {site for vectors in self._texts.values() for site in vectors}
        return [str(site) for site in self.source.sites if self._texts and site not in spoken]

    def finish(self) -> dict[str, Any]:
        """Publish the token map; facts for the job's manifest."""
        self.source.publish_token_map()
        shards = self.store.score_shards(self.job.id, self.job.edition)
        silent = {site for shard in shards.values() for site in shard.get("silent", ())}
        notes = {"title": title_of(self.task, self.samples[0][1]), "metrics": list(self.task.metrics)}
        return {
            "n": self.total,
            "of": self.of,
            "shards": [shards[n] for n in sorted(shards)],
            "captured": self.source.facts(),
            "device": self.source.device,
            "versions": versions(),
            "notes": notes | ({"undefined": self._reasons(silent)} if silent else {}),
        }

    def _reasons(self, silent: Iterable[str]) -> dict[str, str]:
        """Why sites have no text vector, as the family says (`silent`, by stage)."""
        family = self.job.spec.capture.model.family
        told = getattr(registry.load("models", family), "silent", {})
        none = f"{family} gives no text vector here"
        return {str(site): told.get(site.stage, none) for site in sorted(map(Site.parse, silent))}

    def close(self) -> None:
        """Let the blocks go."""
        if self._cache is not None:
            self._cache.close()
        self._cache = None


def title_of(task: Task, sample: Sample) -> str:
    """What charts call the reading of such samples; a task may say so itself (`title(sample)`)."""
    own = getattr(task, "title", None)
    return str(own(sample)) if own else ""


def prefixed(
    prefix: str, task: Task, chosen: Sequence[tuple[int, Sample]], samples: Sequence[tuple[int, Sample]]
) -> list[tuple[int, Sample]]:
    """The chosen samples that can be read after a prefix: `{category}` is that of the images.

    Raises BadOption where that is none.
    `samples` are all of the dataset, which say what the images are of.
    """
    template = prefixes.parse(prefix)
    if template is None or not template.by_category:
        return list(chosen)
    there = prefixes.categories(sample for _, sample in samples)
    kept = [(n, s) for n, s in chosen if prefixes.fits(prefix, task.needs(s).images, there)]
    if not kept:
        why = "no sample's images have one category each; another task or dataset may have some (foreground, pascal)"
        raise BadOption(option="--prefix", value=prefix, why=why)
    return kept


def plan_images(
    task: Task, chosen: Sequence[tuple[int, Sample]], rows: Sequence[ImageRow], limit: int | None, prefix: str = ""
) -> tuple[list[ImageRow], str]:
    """The images that blocks are made of: the whole dataset, or under a limit, or after a prefix that differs by image,
    those that the chosen samples need.
    """
    needed = (
        None
        if limit is None and prefixes.parse(prefix) is None
        else {name for _, s in chosen for name in task.needs(s).images}
    )
    return image_list(rows, needed)


def on_device(capture: Capture, device: str) -> Capture:
    """The capture where the arithmetic is done: on the GPU where there is one, or on what was asked for."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return capture
    stacks = tuple(TokenStack(s.sites, s.tokens.to(device, non_blocking=True)) for s in capture.stacks)
    return dataclasses.replace(capture, stacks=stacks)


class Columns:
    """Scores gathered into narrow columns."""

    def __init__(self) -> None:
        self._pieces: list[tuple[int, Scores, np.ndarray[Any, Any]]] = []

    def add(self, sample: int, scores: Scores) -> None:
        """Take one sample's scores. Raises ValueError when values do not fit the sites."""
        import numpy as np

        values = np.asarray(scores.values, dtype=np.float32)
        if values.ndim != 2 or len(values) != len(scores.sites):
            raise ValueError(f"{scores.metric}: values {values.shape} for {len(scores.sites)} sites")
        self._pieces.append((sample, scores, values))

    def done(self) -> ScoreRows:
        """The columns, one row a (sample, site, head, metric); NaN for what is not defined, which summaries count."""
        import numpy as np

        from vkvdb.store import ScoreRows

        samples, sites, heads, metrics, values, weights = [], [], [], [], [], []
        for sample, scores, array in self._pieces:
            count, columns = array.shape
            numbers = np.array([s.number for s in scores.sites], dtype=np.int16)
            samples.append(np.full(array.size, sample, dtype=np.int32))
            sites.append(np.repeat(numbers, columns))
            # The last column is all heads concatenated, written as head -1.
            heads.append(np.tile(np.array([*range(columns - 1), -1], dtype=np.int8), count))
            metrics += [scores.metric] * array.size
            values.append(array.ravel())
            weights.append(np.broadcast_to(np.asarray(scores.weight, dtype=np.float32), array.shape).ravel())

        def joined(pieces: list[Any], dtype: Any) -> Any:
            return np.concatenate(pieces) if pieces else np.empty(0, dtype=dtype)

        return ScoreRows(
            sample=joined(samples, np.int32),
            site=joined(sites, np.int16),
            head=joined(heads, np.int8),
            metric=metrics,
            value=joined(values, np.float32),
            weight=joined(weights, np.float32),
        )


def open(job: Job, home: Home, store: Store, on_step: OnStep) -> Scoring:  # noqa: A001 - the worker's word for it
    """Begin or go on with a score job."""
    return Scoring(job, home, store, on_step)
