"""Answers against a plain loop of transformers' own forwards, shared or not, and under interventions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from plain_answers import generated, plainly_asked
from reading import loaded

from vkvdb.errors import BadCheckpoint
from vkvdb.models._answering import Answerer, Asked
from vkvdb.models._checks import pictures
from vkvdb.models._reader import Prompt
from vkvdb.paths import Home
from vkvdb.types import Site

FAMILIES = list(tiny.VLMS)
LETTERS = ("(A)", "(B)", "(C)")
Get = Callable[[str], Any]


@pytest.fixture(scope="module")
def smalls(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """A tiny checkpoint of a family with a small tower, loaded as told; each checkpoint is made once."""
    folder = tmp_path_factory.mktemp("smalls")
    home = Home(tmp_path_factory.mktemp("home"))

    def read(family: str, **options: Any) -> Any:
        path = folder / family
        if not path.exists():
            tiny.VLMS[family](path, **({} if family == "qwen2_5_vl" else {"side": 56}))
        return loaded(path, home, **options)

    return read


def prompts(answerer: Answerer, images: int) -> list[Asked]:
    """Five prompts: three about the same images, one about them in another order, one about others."""
    seen = pictures([(120, 90), (60, 90), (56, 56), (40, 80)])
    asked = []
    for words, shown, letters in (
        ("What is it?", (0, 1), 3),
        ("Which one of these is blue, if any?", (0, 1), 2),
        ("What is it?", (1, 0), 3),
        ("Describe it.", (0, 1), 0),
        ("Is it?", (2, 3), 2),
    ):
        names = shown[:images]
        text = answerer.prompt(words, images)
        asked.append(Asked(text, tuple(seen[n] for n in names), tuple(map(str, names)), LETTERS[:letters]))
    return asked


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_a_plain_loop(smalls: Get, family: str, images: int) -> None:
    """Batched, padded, with a shared beginning and without: the same likelihoods and the same text."""
    reader = smalls(family)
    shared, alone = Answerer(reader, tokens=5), Answerer(reader, tokens=5, reuse=False)
    asked = prompts(shared, images)
    # A token that is written for sure ends an answer: stopping is tested too.
    ends = [*shared._ends, generated(reader, asked[0], 3, shared._ends)[-1]]
    shared._ends = alone._ends = ends
    if family == "qwen2_5_vl":
        reader.parts.body.rope_deltas = torch.tensor([[77]])  # of another call: must not be looked at
    for answerer, prefills in ((shared, 3), (alone, 5)):
        before = answerer.prefills
        for one, answered in zip(asked, answerer.answer(asked), strict=True):
            raw, likelihoods = plainly_asked(reader, one, 5, ends)
            assert answered.raw == raw
            assert answered.likelihoods == pytest.approx(likelihoods, abs=1e-5)
        assert answerer.prefills - before == prefills


def test_sharing_changes_nothing_when_all_share(smalls: Get) -> None:
    reader = smalls("llava_next")
    asked = [one for one in prompts(Answerer(reader, tokens=3), 1) if one.names == ("0",)]
    shared, alone = (Answerer(reader, tokens=3, reuse=reuse).answer(asked) for reuse in (True, False))
    for one, other in zip(shared, alone, strict=True):
        assert one.raw == other.raw
        assert one.likelihoods == pytest.approx(other.likelihoods, abs=1e-5)


def test_a_text_before_the_image_is_shared_only_where_it_is_the_same(smalls: Get) -> None:
    """The beginning that is shared ends behind the last image: prompts that differ before it share nothing."""
    reader = smalls("llava_onevision")
    answerer = Answerer(reader, tokens=2)
    (image,) = pictures([(60, 90)])
    texts = [reader.chat.question("What?", prefix=prefix) for prefix in ("a cat", "a dog")]
    asked = [Asked(text, (image,), ("0",), LETTERS[:2]) for text in texts]
    found = answerer.answer(asked)
    assert answerer.prefills == 2
    for one, answered in zip(asked, found, strict=True):
        assert answered.likelihoods == pytest.approx(plainly_asked(reader, one, 2, answerer._ends)[1], abs=1e-5)


def test_letters_that_are_one_to_the_tokenizer_are_refused(smalls: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    answerer = Answerer(smalls("llava"), tokens=1)
    monkeypatch.setattr(answerer.reader, "tokenizer", lambda text, **_: {"input_ids": [3]})
    with pytest.raises(BadCheckpoint, match=r"can't tell \(A\) \(B\) apart"):
        answerer._tokens_of(("(A)", "(B)"))


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_what_is_read_is_what_answered(smalls: Get, family: str) -> None:
    """The tokens of both images in the very prompt, not of each image alone; the same with a shared beginning."""
    reader = smalls(family)
    site = Site("decoder", 2, "value")
    asked = prompts(Answerer(reader, tokens=1), 2)
    found = Answerer(reader, tokens=1).answer(asked, [site], [n != 4 for n in range(5)])
    assert found[4].read == []
    for one, answered in zip(asked[:4], found, strict=False):
        plain = reader.read(reader.prompts([Prompt(one.text, one.images)]), [site])
        assert len(answered.read) == 2
        for (grid, stacks), (true, tokens), image in zip(answered.read, plain, one.images, strict=True):
            assert grid == true
            torch.testing.assert_close(stacks[0].tokens, tokens[0].tokens, rtol=1e-5, atol=1e-6)
            (_, isolated), *_ = reader.capture([image], [site])
            same = isolated[0].tokens.shape == tokens[0].tokens.shape and torch.allclose(
                isolated[0].tokens, stacks[0].tokens, rtol=1e-3, atol=1e-4
            )
            assert not same or image is one.images[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_that_hear_no_image_depend_on_none(smalls: Get, family: str) -> None:
    """Every edge from text to image cut: other pixels, the same answer, in the prefill and in every step."""
    free, cut = smalls(family), smalls(family, interventions=("knockout:text->image",))
    (image,) = pictures([(60, 90)])
    other = image.transpose(0).point(lambda v: 255 - v)
    answers = {}
    for name, reader in (("free", free), ("cut", cut)):
        answerer = Answerer(reader, tokens=4)
        words = ("What is it?", "What is in it, then?")
        asked = [
            Asked(answerer.prompt(w, 1), (i,), (str(n),), LETTERS) for w in words for n, i in enumerate((image, other))
        ]
        answers[name] = answerer.answer(asked)
        for one, answered in zip(asked, answers[name], strict=True):  # in a batch or alone
            again = answerer.answer([one])[0]
            assert again.raw == answered.raw
            assert again.likelihoods == pytest.approx(answered.likelihoods, abs=1e-5)
    for n in (0, 2):
        a, b = answers["cut"][n : n + 2]
        assert (a.raw, a.likelihoods) == (b.raw, pytest.approx(b.likelihoods, abs=1e-6))
        a, b = answers["free"][n : n + 2]
        assert a.likelihoods != pytest.approx(b.likelihoods, abs=1e-4)
        assert a.likelihoods != pytest.approx(answers["cut"][n].likelihoods, abs=1e-4)


def test_under_interventions_nothing_is_padded(smalls: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    """A padded token would be left without any edge to look along; some kernels give no number then."""
    changes = ("knockout:text->all@1", "replace:base=mean@0")
    reader = smalls("llava_onevision", attention="eager", interventions=changes)
    answerer = Answerer(reader, tokens=3)
    asked, masks = prompts(answerer, 1), []

    def note(forward: Any) -> Any:
        def noting(*args: Any, **given: Any) -> Any:
            masks.append(given.get("attention_mask"))
            return forward(*args, **given)

        return noting

    monkeypatch.setattr(reader.parts.body, "forward", note(reader.parts.body.forward))
    monkeypatch.setattr(reader.parts.decoder, "forward", note(reader.parts.decoder.forward))
    together = answerer.answer(asked)
    assert masks
    assert all(mask is None for mask in masks)
    for one, answered in zip(asked, together, strict=True):
        (again,) = answerer.answer([one])
        assert again.raw == answered.raw
        assert again.likelihoods == pytest.approx(answered.likelihoods, abs=1e-5)
    assert answerer.prefills == 2 * len(asked)
