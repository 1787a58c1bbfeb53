"""Texts before the image that differ by image: what they say, and that all are of one number of tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import plugins
import pytest
import tiny
import torch
from fakes import tree
from reading import loaded

from vkvdb import prefixes
from vkvdb.errors import BadOption
from vkvdb.ingestion import ingest
from vkvdb.models._checkpoint import resolve
from vkvdb.models._checks import pictures, tokens_of
from vkvdb.models._prompt import chat_of
from vkvdb.paths import Home
from vkvdb.planning import Choices
from vkvdb.planning_prefix import GENERIC, prefix_jobs
from vkvdb.queue import Queue
from vkvdb.samples import Episode, Expression, Image, ImagePair, Labelled, Mask
from vkvdb.store import Store
from vkvdb.types import Site, Text
from vkvdb.worker import Worker
from vkvdb_cli.main import main

MASK = Mask(4, 4, "0")
N = 40


def image(name: str, category: str, group: str = "1") -> Image:
    return Image(id=name + category, group=group, cluster=name, image=name, category=category)


def pair(group: str, names: tuple[str, ...]) -> ImagePair:
    points: Any = ((1.0, 1.0),)
    both = {"source_points": points, "target_points": points, "target_box": (0, 0, 2, 2)}
    return ImagePair(id=group, group=group, cluster="c", source="a", target="b", names=names, **both)


# --- what they say ----------------------------------------------------------------------------------------------------


def test_plain_text_is_no_template() -> None:
    for text in ("", "A photo.", "tokens", "tokens=x:a", "a {category}", "the tokens=5:"):
        assert prefixes.parse(text) is None
    assert str(prefixes.parse("tokens=7:a {category}")) == "tokens=7:a {category}"


@pytest.mark.parametrize("text", ["tokens=7:a {colour}", "tokens=7:{random} words", "tokens=1:"])
def test_a_bad_template_is_refused(text: str) -> None:
    with pytest.raises(BadOption):
        prefixes.parse(text)


def test_an_image_is_of_what_its_samples_say() -> None:
    labelled = Labelled("c", MASK)
    samples = [
        image("a", "traffic_light"),
        image("d", "", group="dog"),
        image("e", "tench, Tinca tinca"),
        pair("traffic light", ("nose",)),
        pair("self-warp", ()),
        Episode(id="x", group="cat", cluster="c", supports=(labelled,), query=Labelled("a", MASK)),
        Expression(id="y", group="cup", cluster="f", image="f", text="left cup", mask=MASK),
    ]
    assert prefixes.categories(samples) == {
        "a": {"traffic light", "cat"},
        "b": {"traffic light"},
        "c": {"cat"},
        "d": {"dog"},
        "e": {"tench"},
    }


def test_texts_follow_from_the_image_alone() -> None:
    samples = [image(f"i{n}", ["cat", "dog", "fish"][n % 3]) for n in range(30)]
    names = [s.image for s in samples]
    right, wrong, words = (
        prefixes.texts(f"tokens=9:{t}", names, samples) for t in ("a {category}", "a {wrong}", "{random}")
    )
    assert all(right[s.image] == Text(f"a {s.category}", 9) for s in samples)
    assert all(wrong[s.image].words in {f"a {c}" for c in {"cat", "dog", "fish"} - {s.category}} for s in samples)
    assert len({w.words for w in wrong.values()}) == 3
    assert len({w.words for w in words.values()}) == 30
    assert all(w.cut and set(w.words.split()) <= set(prefixes.WORDS) for w in words.values())
    assert prefixes.texts("tokens=9:a {wrong}", names[:4], samples) == {n: wrong[n] for n in names[:4]}
    assert prefixes.texts("tokens=9:", ["z"], []) == {"z": Text("", 9)}
    assert prefixes.texts("a cat", names, samples) == {}


def test_an_image_without_one_category_is_refused_in_words() -> None:
    samples = [image("a", "cat"), image("a", "dog")]
    with pytest.raises(BadOption, match="not one category but cat, dog"):
        prefixes.texts("tokens=9:a {category}", ["a"], samples)
    with pytest.raises(BadOption, match="no category but cat"):
        prefixes.texts("tokens=9:a {wrong}", ["a"], samples[:1])


# --- how long they are ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", list(tiny.VLMS))
def test_every_text_moves_the_image_by_as_many_tokens(readers: Callable[..., Any], family: str) -> None:
    chat = readers(family).chat
    start = chat.ids(chat.beginning(), [1]).index(chat.image_id)
    drawn = prefixes.texts(f"tokens={N}:{{random}}", ["a", "b"], [])
    for text in (Text("", N), Text("a picture of a cat", N), Text("a picture of an elephant", N), *drawn.values()):
        told = chat.after(text)
        ids = chat.ids(told, [1])
        assert ids.index(chat.image_id) == start + N
        assert told.startswith(chat.header)
        assert told.count(text.words) == 1 or text.cut or not text.words
    taken = {text.words: chat.after(text) for text in drawn.values()}
    assert len(set(taken.values())) == 2


def test_a_text_that_is_too_long_is_refused(readers: Callable[..., Any]) -> None:
    with pytest.raises(BadOption, match="a picture of a cat' is"):
        readers("llava").chat.after(Text("a picture of a cat", 5))


def test_the_toy_model_has_words_for_all_of_it(home: Home) -> None:
    """None of the words that stand in every condition is unknown to the model that ships, and filler is one token."""
    chat = chat_of(resolve("toy", home))
    unknown = chat.tokenizer.unk_token_id
    for words in (prefixes.FILLER, *prefixes.WORDS, GENERIC, "a picture of a"):
        assert unknown not in chat.tokenizer(words)["input_ids"]
    assert chat.length(prefixes.FILLER) == 1
    assert chat.after(Text("a picture of a cat", 7)).count("the the a picture of a cat") == 1


# --- what is read -----------------------------------------------------------------------------------------------------


def test_each_image_is_read_after_its_own_text(small_onevision: Path, home: Home) -> None:
    """As if the model had been loaded with that text, padded, as its prefix: bit for bit where all have the same."""
    images, site = pictures([(90, 60), (50, 80)]), Site("decoder", 2, "value")
    reader = loaded(small_onevision, home)

    def read(*words: str) -> list[torch.Tensor]:
        found = reader.capture_after([Text(w, N) for w in words], images, [site])
        return [tokens_of(stacks)[site] for _, stacks in found]

    cats = read("a cat", "a cat")
    padded = reader.chat.after(Text("a cat", N)).removeprefix(reader.chat.header).partition("\n")[0]
    plain = loaded(small_onevision, home, prefix=padded).capture(images, [site])
    assert all(torch.equal(a, tokens_of(stacks)[site]) for a, (_, stacks) in zip(cats, plain, strict=True))
    mixed = read("a cat", "a dog")
    assert torch.equal(mixed[0], cats[0])
    assert not torch.equal(mixed[1], cats[1])


KINDS = '''"""Ten pictures of a cat or a dog, and two of both."""

from __future__ import annotations

import random

from vkvdb.samples import Image
from vkvdb.types import ImageFile, Reading


class Kinds:
    version = 1
    splits = ("test",)
    layout = ""

    def read(self, root, split):
        from PIL import Image as Pictures

        found, draw = Reading(), random.Random(0)
        (root / "images").mkdir(exist_ok=True)
        for n in range(12):
            name = f"{n:02d}.png"
            Pictures.frombytes("RGB", (8, 8), draw.randbytes(192)).resize((56, 56), 0).save(root / "images" / name)
            found.images.append(ImageFile(name=name, path=f"images/{name}"))
            for category in ("cat", "dog") if n >= 10 else ("cat",) if n % 2 else ("dog",):
                found.samples.append(Image(id=f"{n}-{category}", group=category, cluster=name, image=name))
        return found


DATASET = Kinds
'''


@pytest.fixture
def kinds(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    folder = plugins.write(tmp_path / "plugins")
    (folder / "datasets" / "kinds.py").write_text(KINDS, encoding="utf-8")
    monkeypatch.setenv("VKVDB_PLUGINS", str(folder))
    ingest("kinds-test", None, home, Store(home.store))
    return home


def test_conditions_are_jobs_of_equal_length_on_the_same_samples(kinds: Home, small_onevision: Path) -> None:
    store = Store(kinds.store)
    choices, options = Choices(parts=("value",)), {"dataset": "kinds-test", "task": "words", "parameters": {}}
    plans = prefix_jobs(kinds, store, model=str(small_onevision), choices=choices, **options)  # type: ignore[arg-type]
    told = {plan.job.spec.capture.prefix: plan.job for plan in plans}
    *equal, none = told
    length = len("a picture of a thing\n")  # bytes are this tokenizer's tokens; the longest of the texts
    texts = ["", "a picture of a {category}", "a picture of a thing", "a picture of a {wrong}", "{random}"]
    assert equal == [f"tokens={length}:{text}" for text in texts]
    assert none == ""
    queue = Queue(kinds.queue)
    for plan in plans:
        queue.enqueue(plan.job)
    outcomes = Worker(kinds, store, queue).run_until_empty()
    assert [o.state for o in outcomes] == ["done"] * 6
    rows = {}
    for prefix, job in told.items():
        manifest = store.job(job.id, 0)
        assert manifest is not None
        by_category = "{category}" in prefix or "{wrong}" in prefix
        assert (manifest["n"], manifest["of"]) == (10 if by_category else 14, 14)
        rows[prefix] = dict(_values(store, job.id))
    right, wrong = rows[equal[1]], rows[equal[3]]
    for key, value in right.items():
        decoder = Site("decoder", 0, "value").number <= key[1] < Site("floor", 0, "key").number
        # The first layer's values come before all attention; the last text is the only one that is not as long.
        assert (value != wrong[key]) == (decoder and key[1] > Site("decoder", 0, "value").number)
        assert value == rows[equal[0]][key] or decoder


def _values(store: Store, job: str) -> Any:
    table = store.read_scores(job, 0).to_pydict()
    return {
        (s, site, h): v for s, site, h, v in zip(*(table[k] for k in ("sample", "site", "head", "value")), strict=True)
    }


def test_a_prefix_that_cannot_be_is_one_line_and_nothing_is_queued(
    kinds: Home, small_onevision: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--model", str(small_onevision), "--dataset", "kinds-test"]
    before, words = tree(kinds.store), ["--task", "words"]
    for command, says in (
        (["extract", *asked, "--prefix", "tokens=30:a {category}"], "image 10.png has not one category but cat, dog"),
        (
            ["score", "--task", "words", "--model", "pixels", *asked[2:], "--prefix", "tokens=30:"],
            "reads no text before",
        ),
        (["score", *words, *asked, "--prefix", "tokens=30:{dog}"], "{category} and {wrong}"),
        (["prefix", *words, "--model", "pixels", *asked[2:]], "name a vision-language model"),
    ):
        assert main(command) == 1
        assert says in capsys.readouterr().err
    assert tree(kinds.store) == before
    assert not Queue(kinds.queue).rows()
