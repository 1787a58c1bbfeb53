"""Questions: asked in the model's own words, with controls, in batches; answers read, and their values kept when asked.

What a question says, its variants and how an answer is read: `vkvdb.wording`. How prompts are run:
`vkvdb.models._answering`. Both halves of the method's (3.6) measure are here: greedy text and letter likelihoods. With
a task, it is scored on the image tokens of the very prefill that answered variant 0: same ids, pixels, image order and
interventions. `MODEL@blank` answers without seeing: the prior that a model has.

Questions are taken in the order of how many images they show, and then of these images, so that those about the same
images are neighbours and share a prefill. A block is a run of prompts of one number of images, and never crosses a
shard: batches follow from the specification alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from vkvdb import wording
from vkvdb.errors import BadDataset
from vkvdb.extraction import (
    Advance,
    OnStep,
    dataset_root,
    find_model,
    image_list,
    load_model,
    versions,
    wanted_sites,
)
from vkvdb.jobs import Ask, Job, digest
from vkvdb.paths import Home
from vkvdb.samples import Question, Sample
from vkvdb.scoring import Columns, choose, make_task, on_device, title_of
from vkvdb.types import Capture, Site, Task

if TYPE_CHECKING:
    import torch

    from vkvdb.models._answering import Answered, Answerer
    from vkvdb.store import ImageRow, Store

VERSION = 1
SHARD_QUESTIONS = 128
_COLUMNS = (
    "sample",
    "variant",
    "prompt",
    "prompt_id",
    "raw",
    "likelihoods",
    "choice",
    "likeliest",
    "correct",
    "answer",
)

Numbered = tuple[int, Question]


def questions_of(samples: Sequence[tuple[int, Sample]], dataset: str) -> list[Numbered]:
    """A dataset's questions, each with its number. Raises BadDataset when it has none, or one can't be asked."""
    found = [(n, s) for n, s in samples if isinstance(s, Question)]
    if not found:
        kinds = ", ".join(sorted({s.kind for _, s in samples})) or "nothing"
        what = f"dataset {dataset} has no question; it has {kinds}"
        raise BadDataset(what=what, expected="a dataset that has (vkvdb datasets list)")
    for _, question in found:
        if not question.shown or (question.options and question.options.count(question.answer) != 1):
            why = "shows no image" if not question.shown else "has an answer that is not one of its options"
            raise BadDataset(what=f"question {question.id} of {dataset} {why}", expected="one that can be asked")
    return found


def plan_images(chosen: Sequence[Numbered], rows: Sequence[ImageRow], limit: int | None) -> tuple[list[ImageRow], str]:
    """The images of a job, and the hash of the list when it is not the whole dataset: under a limit only."""
    return image_list(rows, None if limit is None else {name for _, q in chosen for name in q.shown})


@dataclass(frozen=True)
class _Prompt:
    """A variant of a question, `place` in the order in which questions are asked."""

    place: int
    worded: wording.Worded
    text: str


class Asking:
    """An ask job under way."""

    def __init__(self, job: Job, home: Home, store: Store, on_step: OnStep) -> None:
        spec = job.spec
        assert isinstance(spec, Ask)
        self.job, self.spec, self.store, self._home, self._on_step = job, spec, store, home, on_step
        manifest = store.dataset(spec.capture.dataset)
        every = questions_of(store.samples(spec.capture.dataset), manifest["name"])
        self.of = len(every)
        chosen: Any = choose(every, spec.limit, spec.seed)
        rows, selection = plan_images(chosen, store.images(spec.capture.dataset), spec.limit)
        assert selection == spec.capture.selection
        self._rows = {row.name: row for row in rows}
        self.questions: list[Numbered] = sorted(chosen, key=self._order)
        self.task: Task | None = make_task(spec.task, dict(spec.parameters)) if spec.task else None
        found = find_model(job, home)
        self._sites = [s.site for s in wanted_sites(found.sites(), spec.layers, spec.parts)] if self.task else []
        self._root = dataset_root(home, store, manifest)
        self.total = len(self.questions)
        self.shards = -(-self.total // SHARD_QUESTIONS)
        self._answerer: Answerer | None = None
        self._texts: dict[str, dict[Site, torch.Tensor]] = {}
        self._done = {"prompts": 0, "blocks": 0, "seconds": 0.0}

    def _order(self, item: Numbered) -> tuple[int, tuple[int, ...], int]:
        number, question = item
        return len(question.shown), tuple(self._rows[name].image for name in question.shown), number

    def _range(self, shard: int) -> range:
        return range(shard * SHARD_QUESTIONS, min((shard + 1) * SHARD_QUESTIONS, self.total))

    def units(self, shard: int) -> int:
        """Questions of a shard."""
        return len(self._range(shard))

    def done(self, shard: int) -> bool:
        """Whether the shard's answers are published; its scores are published before them."""
        return shard in self.store.row_shards("answers", self.job.id, self.job.edition)

    def run_shard(self, shard: int, advance: Advance) -> None:
        """Ask a shard's questions and publish scores, where a task is read, and answers."""
        answers: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
        scores = Columns()
        for block in self._blocks(shard):
            start = time.perf_counter()
            self._ask(block, answers, scores)
            self._done["seconds"] += time.perf_counter() - start
            self._done["prompts"] += len(block)
            self._done["blocks"] += 1
            advance(sum(prompt.worded.variant == 0 for prompt in block))
        self._on_step("shard computed")
        facts = {"samples": self.units(shard), "device": self._model.reader.device}
        if self.task:
            self.store.write_scores(self.job.id, self.job.edition, shard, scores.done(), facts)
        self.store.write_rows("answers", self.job.id, self.job.edition, shard, answers, facts)

    # --- asking ---

    @property
    def _model(self) -> Answerer:
        if self._answerer is None:
            from vkvdb.models._answering import Answerer

            self._answerer = Answerer(load_model(self.job, self._home), tokens=self.spec.tokens)
        return self._answerer

    def _blocks(self, shard: int) -> Iterator[list[_Prompt]]:
        """A shard's prompts in blocks; each question's variants follow each other."""
        prompts = [
            _Prompt(place, one, self._model.prompt(one.text, len(one.shown)))
            for place in self._range(shard)
            for one in wording.worded(self.questions[place][1], swaps=self.spec.swaps)
        ]
        size = self.spec.capture.block
        for _, several in groupby(prompts, key=lambda p: len(p.worded.shown)):
            run = list(several)
            yield from (run[first : first + size] for first in range(0, len(run), size))

    def _ask(self, block: Sequence[_Prompt], answers: dict[str, list[Any]], scores: Columns) -> None:
        from vkvdb.images import open_image
        from vkvdb.models._answering import Asked

        names = {name for prompt in block for name in prompt.worded.shown}
        opened = {name: open_image(self._root, self._rows[name]) for name in names}
        asked = [
            Asked(p.text, tuple(opened[n] for n in p.worded.shown), p.worded.shown, p.worded.letters) for p in block
        ]
        made = self._model.answer(asked, self._sites, [p.worded.variant == 0 for p in block])
        for prompt, answered in zip(block, made, strict=True):
            number, question = self.questions[prompt.place]
            for name, value in self._row(number, question, prompt, answered).items():
                answers[name].append(value)
            if self.task and prompt.worded.variant == 0:
                self._score(number, question, answered, scores)

    def _row(self, number: int, question: Question, prompt: _Prompt, answered: Answered) -> dict[str, Any]:
        """A row of `answers`."""
        worded = prompt.worded
        images = [[self._rows[name].sha256, self._rows[name].recipe] for name in worded.shown]
        row: dict[str, Any] = {
            "sample": number,
            "variant": worded.variant,
            "prompt": prompt.text,
            "prompt_id": digest({"prompt": prompt.text, "images": images}),
            "raw": answered.raw,
        }
        if not question.options:
            empty = dict.fromkeys(("likelihoods", "choice", "likeliest", "answer"))
            return {**row, **empty, "correct": wording.says(answered.raw, question.answer)}
        likelihoods = worded.in_order(answered.likelihoods)
        choice, right = worded.choice(answered.raw), question.options.index(question.answer)
        return {
            **row,
            "likelihoods": likelihoods,
            "choice": choice,
            "likeliest": likelihoods.index(max(likelihoods)),
            "correct": None if choice is None else choice == right,
            "answer": right,
        }

    def _score(self, number: int, question: Question, answered: Answered, scores: Columns) -> None:
        """Score the task on what was read while the question was answered."""
        assert self.task is not None
        captures: dict[str, Capture] = {}
        for name, (grid, stacks) in zip(question.shown, answered.read, strict=True):
            row = self._rows[name]
            capture = Capture(name, self.spec.capture.view, grid, stacks, (row.width, row.height))
            captures.setdefault(name, on_device(capture, self.job.provenance.device))
        needs = self.task.needs(question)
        for words in needs.texts:
            if words not in self._texts:
                self._texts[words] = self._model.reader.text(words, self._sites)
        texts: Mapping[str, Any] = {words: self._texts[words] for words in needs.texts}
        for each in self.task.score(question, {name: captures[name] for name in needs.images}, texts):
            scores.add(number, each)

    # --- the end ---

    def finish(self) -> dict[str, Any]:
        """Facts for the job's manifest."""
        shards = {kind: self.store.row_shards(kind, self.job.id, self.job.edition) for kind in ("scores", "answers")}
        model = self._answerer
        notes: dict[str, Any] = {}
        if self.task:
            notes = {"title": title_of(self.task, self.questions[0][1]), "metrics": list(self.task.metrics)}
        return {
            "n": self.total,
            "of": self.of,
            "shards": [shards["scores"][n] for n in sorted(shards["scores"])],
            "answers": [shards["answers"][n] for n in sorted(shards["answers"])],
            "captured": {
                **self._done,
                "seconds": round(self._done["seconds"], 3),
                "prefills": model.prefills if model else 0,
                "images": len(self._rows),
            },
            "device": model.reader.device if model else "none",
            "versions": versions(),
            "notes": notes,
        }

    def close(self) -> None:
        """Let the model's answers go; the model itself stays loaded for the next job."""
        self._answerer = None


def open(job: Job, home: Home, store: Store, on_step: OnStep) -> Asking:  # noqa: A001 - the worker's word for it
    """Begin or go on with an ask job."""
    return Asking(job, home, store, on_step)
