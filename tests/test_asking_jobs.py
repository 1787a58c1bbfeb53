"""Answers as a job: from the queue to the catalog, by group, resumed, by the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plain_answers import plainly_asked
from reading import loaded

from vkvdb import asking
from vkvdb.catalog import Catalog
from vkvdb.errors import BadDataset, BadIntervention, BadOption
from vkvdb.images import open_image
from vkvdb.ingestion import ingest
from vkvdb.jobs import digest
from vkvdb.models._answering import Answerer, Asked
from vkvdb.models._reader import Prompt
from vkvdb.paths import Home
from vkvdb.planning import Choices
from vkvdb.planning_ask import ask_job
from vkvdb.queue import Queue
from vkvdb.samples import Image, Question
from vkvdb.store import Store
from vkvdb.types import Site
from vkvdb.wording import worded
from vkvdb.worker import Worker
from vkvdb_cli import _after
from vkvdb_cli.main import main

QUIZ = '''"""Questions of every sort about four small pictures."""

from __future__ import annotations

import random

from vkvdb.samples import Question
from vkvdb.types import ImageFile, Reading


class Quiz:
    version = 1
    splits = ("test",)
    layout = ""

    def read(self, root, split):
        from PIL import Image as Pictures

        found = Reading()
        draw = random.Random(0)
        for n in range(4):
            path = root / f"{n}.png"
            Pictures.frombytes("RGB", (8, 8), draw.randbytes(192)).resize((64, 48), 2).save(path)
            found.images.append(ImageFile(name=str(n), path=path.name))

        def ask(group, shown, text, answer, options=()):
            number = str(len(found.samples))
            found.samples.append(Question(id=number, group=group, cluster=number, shown=shown, text=text, answer=answer,
                                          options=options))

        places = ("the second image", "the third image")
        ask("style", ("0", "1", "2"), "Which has the style of the first image?", places[0], places)
        ask("style", ("3", "1", "2"), "Which has the style of the first image?", places[1], places)
        ask("seen", ("1",), "Is there a cat?", "yes", ("yes", "no"))
        ask("seen", ("1",), "How many?", "2", ("1", "2", "3"))
        ask("said", ("1",), "What is it?", "a cat")
        ask("marks", ("2", "3"), "Which point? (A) (B)", "point B", ("point A", "point B"))
        return found


DATASET = Quiz
'''

PEEK = '''"""The mean of a value channel over each question's last image: a task of a test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vkvdb.samples import Question
from vkvdb.types import Needs, Scores


@dataclass(frozen=True)
class Peek:
    version: ClassVar[int] = 3
    takes: ClassVar[type] = Question
    metrics: ClassVar[tuple[str, ...]] = ("mean",)

    channel: int = 0

    def needs(self, sample):
        return Needs((sample.shown[-1],))

    def score(self, sample, captures, texts):
        for stack in captures[sample.shown[-1]].stacks:
            means = stack.tokens[..., self.channel].mean((2, 3))
            yield Scores("mean", stack.sites, [[*row.tolist(), row.mean().item()] for row in means])


TASK = Peek
'''


@pytest.fixture
def store(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store in which the quiz is ingested."""
    for kind, name, text in (("datasets", "quiz", QUIZ), ("tasks", "peek", PEEK)):
        path = tmp_path / "plugins" / kind / f"{name}.py"
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.setenv("VKVDB_PLUGINS", str(tmp_path / "plugins"))
    monkeypatch.setattr(asking, "SHARD_QUESTIONS", 4)
    made = Store(home.store)
    ingest("quiz-test", None, home, made)
    return made


def work(home: Home, store: Store, plan: Any, **more: Any) -> None:
    queue = Queue(home.queue)
    queue.enqueue(plan.job)
    (outcome,) = Worker(home, store, queue, **more).run_until_empty()
    assert outcome.state == "done", outcome


def rows_of(store: Store, plan: Any) -> list[dict[str, Any]]:
    return list(store.read_rows("answers", plan.job.id, plan.job.edition).to_pylist())


def test_from_the_queue_to_the_catalog(home: Home, store: Store, small_onevision: Path) -> None:
    """Every answer is that of a plain loop over all variants; likelihoods in the dataset's order."""
    plan = ask_job(
        home, store, model=str(small_onevision), dataset="quiz-test", choices=Choices(block=3), tokens=4, task="peek"
    )
    work(home, store, plan)
    rows = rows_of(store, plan)
    questions: dict[int, Any] = dict(store.samples(plan.job.spec.capture.dataset))
    manifest = store.dataset(plan.job.spec.capture.dataset)
    root = asking.dataset_root(home, store, manifest)
    images = {row.name: row for row in store.images(manifest["hash"])}
    reader = loaded(small_onevision, home)
    ends = Answerer(reader, tokens=4)._ends
    assert sorted((r["sample"], r["variant"]) for r in rows) == [
        *((0, v) for v in (0, 1, 2)),
        *((1, v) for v in (0, 1, 2)),
        (2, 0),
        (2, 1),
        (3, 0),
        (3, 1),
        (4, 0),
        (5, 0),
    ]
    for row in rows:
        question = questions[row["sample"]]
        (one,) = [w for w in worded(question, swaps=True) if w.variant == row["variant"]]
        opened = tuple(open_image(root, images[name]) for name in one.shown)
        asked = Asked(reader.chat.question(one.text, len(opened)), opened, one.shown, one.letters)
        raw, likelihoods = plainly_asked(reader, asked, 4, ends)
        assert (row["prompt"], row["raw"]) == (asked.text, raw)
        assert row["prompt_id"] == digest({"prompt": asked.text, "images": [[images[n].sha256, ""] for n in one.shown]})
        if not question.options:
            assert (row["likelihoods"], row["answer"], row["choice"], row["likeliest"]) == (None, None, None, None)
            continue
        mapped = [likelihoods[one.order.index(k)] for k in range(len(question.options))]
        assert row["likelihoods"] == pytest.approx(mapped, abs=1e-5)
        assert row["likeliest"] == mapped.index(max(mapped))
        assert question.options[row["answer"]] == question.answer
    # The reading stands on the whole prompt of variant 0.
    scores = store.read_scores(plan.job.id, 0).to_pylist()
    assert {s["sample"] for s in scores} == set(questions)
    site = Site("decoder", 1, "value")
    for number in (0, 5):
        shown = questions[number].shown
        text = reader.chat.question(worded(questions[number], swaps=False)[0].text, len(shown))
        block = reader.prompts([Prompt(text, tuple(open_image(root, images[name]) for name in shown))])
        _, stacks = reader.read(block, [site])[-1]
        mean = stacks[0].tokens[0, ..., 0].mean((1, 2)).tolist()
        got = {s["head"]: s["value"] for s in scores if s["sample"] == number and s["site"] == site.number}
        assert [got[0], got[1]] == pytest.approx(mean, abs=1e-6)
    catalog = Catalog(home.catalog)
    assert catalog.absorb(store).jobs == [plan.job.id]
    absorbed = catalog.query("SELECT kind, task, task_version, n FROM jobs").rows
    assert absorbed == [("ask", "peek", 3, 6)]
    assert catalog.query("SELECT count(*) FROM answers").rows == [(len(rows),)]
    assert list(catalog.check()) == []


def test_accuracy_by_group(home: Home, store: Store, small_onevision: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The view, by hand, on answers that a test writes."""
    plan = ask_job(home, store, model=str(small_onevision), dataset="quiz-test", choices=Choices())
    raws = {(0, 0): "(A)", (0, 1): "(A)", (0, 2): "?", (1, 0): "(A)", (1, 1): "(B)", (1, 2): "(A)", (4, 0): "a cat!"}

    def row(self: Any, number: int, question: Question, prompt: Any, answered: Any) -> dict[str, Any]:
        raw = raws.get((number, prompt.worded.variant), "")
        letters = tuple(-1.0 - k for k in range(len(question.options)))  # the first letter, always
        return dict(own(self, number, question, prompt, type(answered)(raw, letters)))

    own = asking.Asking._row
    monkeypatch.setattr(asking.Asking, "_row", row)
    work(home, store, plan)
    catalog = Catalog(home.catalog)
    catalog.absorb(store)
    query = """SELECT grp, swap, n, n_unread, accuracy, by_likelihood, prior, consistency, consistency_by_likelihood
        FROM answers_by_group WHERE grp IN ('style', 'said') ORDER BY grp, swap"""
    assert catalog.query(query).rows == [
        ("said", 0, 1, 0, 1.0, None, 1.0, None, None),
        ("style", 0, 2, 0, 0.5, 0.5, 0.5, None, None),
        ("style", 1, 2, 0, 0.0, 0.5, 0.5, 0.5, 0.0),
        ("style", 2, 2, 1, 0.5, 0.5, 0.5, 0.0, 0.0),
    ]
    ((low, high),) = catalog.query("SELECT low, high FROM answers_by_group WHERE grp = 'style' AND swap = 0").rows
    assert (low, high) == pytest.approx((0.0945, 0.9055), abs=1e-4)  # Wilson, 1 of 2


def test_a_job_goes_on_where_it_stopped(home: Home, store: Store, small_onevision: Path) -> None:
    """Scores are published before answers: killed between them, a shard is done again, and nothing is doubled."""
    options: dict[str, Any] = {"model": str(small_onevision), "dataset": "quiz-test", "task": "peek", "tokens": 2}
    plan = ask_job(home, store, choices=Choices(block=4), **options)
    write = store.write_rows

    def die(kind: str, job: str, edition: int, shard: int, *rest: Any) -> Any:
        if kind == "answers" and shard == 1:
            raise KeyboardInterrupt
        return write(kind, job, edition, shard, *rest)

    store.write_rows = die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        work(home, store, plan)
    assert sorted(store.row_shards("answers", plan.job.id, 0)) == [0]
    assert sorted(store.row_shards("scores", plan.job.id, 0)) == [0, 1]
    steps: list[str] = []
    fresh = Store(home.store)
    (outcome,) = Worker(home, fresh, Queue(home.queue), on_step=steps.append).run_until_empty()
    assert outcome.state == "done"
    assert steps.count("shard computed") == 1
    again = ask_job(home, fresh, choices=Choices(block=4, again=True), **options)
    work(home, fresh, again)
    assert rows_of(fresh, again) == rows_of(fresh, plan)
    assert fresh.read_scores(again.job.id, 1).equals(fresh.read_scores(plan.job.id, 0))


def test_a_blank_model_answers_without_seeing(home: Home, store: Store, small_onevision: Path) -> None:
    plan = ask_job(
        home, store, model=f"{small_onevision}@blank", dataset="quiz-test", choices=Choices(), tokens=2, swaps=False
    )
    work(home, store, plan)
    rows = {row["sample"]: row for row in rows_of(store, plan)}
    assert sorted(rows) == list(range(6))
    assert rows[0]["likelihoods"] == pytest.approx(rows[1]["likelihoods"], abs=1e-6)  # other images, the same words


def test_the_command(
    home: Home,
    store: Store,
    small_onevision: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_after, "mirror", lambda *_: [])  # MLflow has tests of its own
    model = ["--model", str(small_onevision), "--dataset", "quiz-test"]
    asks = ["ask", *model, "--tokens", "2", "--no-swaps", "--intervene", "knockout:last->image", "--prefix", "a cat"]
    assert main([*asks, "--now"]) == 0
    told = capsys.readouterr().out
    assert "ask after 'a cat'  small  quiz-test  n=6" in told
    lines = [line.split() for line in told.splitlines()[2:]]
    assert lines[0][:8] == ["group", "swap", "n", "unread", "accuracy", "low", "high", "by_likelihood"]
    assert [(line[0], line[2]) for line in lines[1:]] == [("marks", "1"), ("said", "1"), ("seen", "2"), ("style", "2")]
    assert main([*asks, "--now"]) == 0  # already done: the table is shown again
    assert "style" in capsys.readouterr().out
    assert main(["ask", *model, "--read", "peek", "-p", "channel", "2"]) == 0
    assert "ask peek  small" in capsys.readouterr().out
    assert main(["jobs", "list", "--csv"]) == 0
    assert [line.split(",")[3] for line in capsys.readouterr().out.splitlines()[1:]] == [
        "ask after 'a cat'",
        "ask peek",
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "pixels"], "pixels has no decoder to answer with"),
        (["--read", "correspondence"], "it reads image_pair, not question (vkvdb score --task correspondence does)"),
        (["--read", "peak"], "did you mean 'peek'"),
        (["-p", "channel", "1"], "parameters are those of --read TASK"),
        (["--layers", "1"], "--layers 1: it says what --read TASK reads"),
        (["--view", "tiles"], "--view tiles: it says what --read TASK reads"),
        (["--intervene", "knockout:text->cat"], "no group cat; there are: all, base, image"),
        (["--intervene", "replace:image=mean:7c1e@input"], "a job replaces tokens by zero or by mean"),
        (["--intervene", "knockout:text->image@7"], "there is no layer 7"),
    ],
)
def test_a_mistake_is_one_line(  # noqa: PLR0917 - fixtures
    home: Home,
    store: Store,
    small_onevision: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    if "--model" not in arguments:
        arguments = [*arguments, "--model", str(small_onevision)]
    assert main(["ask", "--dataset", "quiz-test", *arguments]) == 1
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1
    assert not home.queue.exists()


def test_encoders_and_other_datasets_are_refused(
    home: Home, store: Store, tiny_model: Callable[[str], Path], small_onevision: Path
) -> None:
    with pytest.raises(BadOption, match="siglip has no decoder"):
        ask_job(home, store, model=str(tiny_model("siglip")), dataset="quiz-test", choices=Choices())
    changed = Choices(interventions=("knockout:text->image@0:h9",))
    with pytest.raises(BadIntervention, match="no key-value head 9"):
        ask_job(home, store, model=str(small_onevision), dataset="quiz-test", choices=changed)
    with pytest.raises(BadDataset, match="has no question; it has image"):
        asking.questions_of([(0, Image(id="i", group="g", cluster="c", image="i"))], "quiz-test")
    wrong = Question(id="q", group="g", cluster="c", shown=("i",), text="?", answer="c", options=("a", "b"))
    with pytest.raises(BadDataset, match="has an answer that is not one of its options"):
        asking.questions_of([(0, wrong)], "quiz-test")
