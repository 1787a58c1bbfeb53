"""Replace; what a person can do wrong; what remains; the text form. Knockout: test_interventions_knockout.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import decoders
import pytest
import torch
from decoders import CUT_BY_HEAD, GROUPS, IDS, IMAGES, LAYERS, PROMPT, WIDTH, hooks, make, run, same
from transformers.cache_utils import DynamicCache

from vkvdb.errors import BadIntervention
from vkvdb.interventions import Knockout, Replace, TokenGroups, applied, canonical, parse, tensor_name
from vkvdb.models._capture import ReadingCache, _Deep


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    yield from decoders.one_thread()


@pytest.fixture(params=decoders.DECODERS, ids="-".join)
def decoder(request: pytest.FixtureRequest) -> Any:
    return make(*request.param)


@pytest.fixture
def ids() -> torch.Tensor:
    return IDS.clone()


def given(source: str, tensors: list[torch.Tensor]) -> list[TokenGroups]:
    return [TokenGroups(g.prompt, g.named, {source: t}) for g, t in zip(GROUPS, tensors, strict=True)]


def test_replace_at_the_input_equals_other_embeddings(decoder, ids):
    embedded = decoder.embed_tokens(ids).detach()
    others = [torch.randn(3, WIDTH), torch.randn(3, WIDTH)]
    for source, groups, new in [
        ("zero", GROUPS, [torch.zeros(WIDTH)] * 2),
        ("mean", GROUPS, [embedded[row, list(image)].mean(0) for row, image in enumerate(IMAGES)]),
        ("mean:a set", given("mean:a set", [others[0][0]] * 2), [others[0][0]] * 2),
        ("image:cat@2=3.jpg", given("image:cat@2=3.jpg", others), others),
    ]:
        changed = embedded.clone()
        for row, tokens in enumerate(GROUPS):
            changed[row, list(tokens.named["object"])] = new[row]
        with applied(decoder, [f"replace:object={source}@input"], groups):
            got = run(decoder, ids)
        cache = DynamicCache()
        with torch.no_grad():
            wanted = decoder(inputs_embeds=changed, past_key_values=cache, use_cache=True).last_hidden_state
        assert torch.equal(got["out"], wanted), source
        untouched = embedded.clone()
        with torch.no_grad(), applied(decoder, [f"replace:object={source}@input"], groups):
            assert torch.equal(decoder(inputs_embeds=untouched).last_hidden_state, wanted)
        assert torch.equal(untouched, embedded)
        assert torch.equal(got["value2"], cache.layers[2].values)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_replace_after_a_layer(decoder, ids, layer):
    before = run(decoder, ids)
    with applied(decoder, [f"replace:object=mean@{layer}"], GROUPS):
        after = run(decoder, ids)
    for n in range(layer):
        assert torch.equal(before[f"layer{n}"], after[f"layer{n}"])
    expected = before[f"layer{layer}"].clone()
    for row, tokens in enumerate(GROUPS):
        expected[row, list(tokens.named["object"])] = expected[row, list(tokens.named["image"])].mean(0)
    assert torch.equal(after[f"layer{layer}"], expected)
    assert not torch.equal(before["out"], after["out"])


def test_generated_tokens_are_not_replaced(ids):
    decoder, prompt = make("qwen2", "sdpa"), PROMPT - 3
    before = run(decoder, ids)["layer1"]
    with applied(decoder, ["replace:last,16-19=zero@1"], [TokenGroups(prompt, g.named) for g in GROUPS]):
        after = run(decoder, ids)["layer1"]
    assert (after[:, prompt - 1] == 0).all()
    assert torch.equal(before[:, prompt:], after[:, prompt:])


def test_a_tensor_is_checked_by_its_digest(ids):
    decoder, tensor = make("llama", "eager"), torch.randn(WIDTH, dtype=torch.bfloat16)
    name = tensor_name(tensor)
    assert re.fullmatch("tensor:[0-9a-f]{32}", name)
    assert len({name, tensor_name(tensor.float()), tensor_name(tensor[None]), tensor_name(-tensor)}) == 4
    text = f"replace:image={name}@input"
    with applied(decoder, [text], given(name, [tensor] * 2)):
        run(decoder, ids)
    with pytest.raises(BadIntervention, match="another tensor"), applied(decoder, [text], given(name, [-tensor] * 2)):
        run(decoder, ids)


# --- what a person can do wrong, and what remains ---------------------------------------------------------------------


def test_nothing_remains(decoder, ids):
    before = run(decoder, ids)
    texts = ["knockout:text->image:h0", "replace:image=zero@1"]
    with applied(decoder, texts, GROUPS):
        assert not same(before, run(decoder, ids))
        assert hooks(decoder) > 0
    assert hooks(decoder) == 0
    with pytest.raises(RuntimeError, match="ours"), applied(decoder, texts, GROUPS):
        raise RuntimeError("ours")
    with pytest.raises(ValueError, match="token groups"), applied(decoder, texts, GROUPS[:1]):
        run(decoder, ids)
    assert hooks(decoder) == 0
    assert same(before, run(decoder, ids))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("knockout:text->obiect", "no group obiect; there are: all, image, last, object, text"),
        ("knockout:text->image@3", "no layer 3; there are: 0-2"),
        ("knockout:text->image:h2", "no key-value head 2; there are: 0-1"),
        ("replace:image=zero@7", "no layer 7"),
        ("replace:image=mean:elsewhere@1", "mean:elsewhere was not given"),
        ("replace:image=image:a@1", r"\(3, 32\) was given, \(32,\) or \(8, 32\) is wanted"),
        ("replace:40-43=zero@1", "changed nothing"),  # beyond the prompt
        ("knockout:0-1->image", "changed nothing"),  # nothing of the future is attended to anyway
        ("knockout:5->5", "changed nothing"),  # the edge to itself stays
    ],
)
def test_refused_in_one_line(ids, text, words):
    decoder = make("llama", "sdpa")
    groups = given("image:a", [torch.zeros(3, WIDTH)] * 2)
    with pytest.raises(BadIntervention, match=words) as caught, applied(decoder, [text], groups):
        run(decoder, ids)
    assert str(caught.value).startswith(f"intervention '{text}': ")
    assert "\n" not in str(caught.value)
    assert hooks(decoder) == 0


def test_a_group_called_image_must_be_there():
    decoder, groups = make("llama", "sdpa"), [TokenGroups(PROMPT, {})]
    with pytest.raises(BadIntervention, match="no group image"), applied(decoder, ["knockout:last->text"], groups):
        pass


def test_a_layer_that_is_not_reached_is_an_error(ids):
    """A capture that stops at layer 1's keys never runs layer 1's attention."""
    decoder = make("llama", "sdpa")
    cache = ReadingCache(lambda *_: None, last=1)
    with (
        pytest.raises(BadIntervention, match="changed nothing"),
        applied(decoder, [CUT_BY_HEAD], GROUPS),
        pytest.raises(_Deep),
    ):
        decoder(input_ids=ids, past_key_values=cache, use_cache=True)


# --- the text form ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("knockout:text->image@10-15:h0,2", None),
        ("knockout:last->image", None),
        ("knockout:last->rest,object,7,5-6,30@2,1,0,8:h3,1,0", "knockout:last->object,rest,5-7,30@0-2,8:h0-1,3"),
        ("knockout:object_1->0:h0", None),
        ("replace:image=mean@input", None),
        ("replace:object,3-4=zero@12", None),
        ("replace:image,image=image:a=b@c.jpg@0", "replace:image=image:a=b@c.jpg@0"),
        ("replace:base=tensor:00ff@31", None),
    ],
)
def test_text_form(text, printed):
    printed = printed or text
    assert str(parse(text)) == printed
    assert parse(printed) == parse(text)
    assert canonical([text]) == (printed,)


def test_text_form_means_what_it_says():
    assert parse("knockout:text->image@10-12:h0,2") == Knockout("text", "image", (10, 11, 12), (0, 2))
    assert parse("knockout:last->a,3-4") == Knockout("last", "a,3-4", None, None)
    assert parse("replace:object=mean@input") == Replace("object", "mean", None)
    assert parse("replace:object=mean:7c@3") == Replace("object", "mean:7c", 3)
    assert canonical(["knockout:b->c", "replace:x=zero@1", "knockout:a->c", "knockout:b->c", "replace:a=zero@1"]) == (
        "replace:x=zero@1",
        "replace:a=zero@1",
        "knockout:a->c",
        "knockout:b->c",
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "knockout:text",
        "knockout:text->",
        "knockout:text->object+1",
        "knockout:text->image@",
        "knockout:text->image@input",
        "knockout:text->image:0",
        "knockout:text->image@5-3",
        "knockout:text->image@1 ",
        "Knockout:text->image",
        "replace:image=nought@input",
        "replace:image=mean",
        "replace:image=mean@1-2",
        "replace:image=tensor:@1",
    ],
)
def test_other_text_is_refused(text):
    with pytest.raises(BadIntervention, match=re.escape(f"intervention '{text}': ")):
        parse(text)
