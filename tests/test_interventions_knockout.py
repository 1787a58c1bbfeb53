"""Knockout: exactly the edges asked for, in prefill and in every step; attention that ignores masks is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import decoders
import pytest
import torch
from decoders import (
    CUT_BY_HEAD,
    DIM,
    FAMILIES,
    GROUPS,
    HEADS,
    IDS,
    IMAGES,
    KV,
    LAYERS,
    PROMPT,
    SHAPE,
    hooks,
    make,
    noisy,
    run,
    same,
)
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vkvdb.errors import BadIntervention, MaskIgnored
from vkvdb.interventions import TokenGroups, applied
from vkvdb.models._capture import ReadingCache


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    yield from decoders.one_thread()


@pytest.fixture(params=decoders.DECODERS, ids="-".join)
def decoder(request: pytest.FixtureRequest) -> Any:
    return make(*request.param)


@pytest.fixture
def ids() -> torch.Tensor:
    return IDS.clone()


Intervened = Callable[[], AbstractContextManager[None]]


def check_head_knockout(decoder: Any, ids: torch.Tensor, intervened: Intervened) -> None:
    """The knockout of head 1 in layer 1 changes exactly its query heads, 2 and 3, at the text after the image."""
    before = run(decoder, ids)
    with intervened():
        after = run(decoder, ids)
    for name in ("heads0", "layer0", "key0", "value0", "key1", "value1"):
        assert torch.equal(before[name], after[name]), name
    changed = (before["heads1"] != after["heads1"]).unflatten(-1, (HEADS, DIM)).any(-1)
    expected = torch.zeros(2, PROMPT, HEADS, dtype=torch.bool)
    for row, image in enumerate(IMAGES):
        expected[row, image[-1] + 1 :, 2:] = True
    assert torch.equal(changed, expected)
    assert not torch.equal(before["key2"], after["key2"])


def test_head_knockout(decoder, ids):
    check_head_knockout(decoder, ids, lambda: applied(decoder, [CUT_BY_HEAD], GROUPS))


def test_zeroing_behind_o_proj_is_no_head_knockout(decoder, ids):
    @contextmanager
    def wrong() -> Iterator[None]:
        def zero(_module: Any, _args: Any, out: Any) -> Any:
            states = out[0].clone()
            for row, image in enumerate(IMAGES):
                states[row, image[-1] + 1 :, 2 * DIM :] = 0
            return (states, *out[1:])

        handle = decoder.layers[1].self_attn.register_forward_hook(zero)
        yield
        handle.remove()

    with pytest.raises(AssertionError):
        check_head_knockout(decoder, ids, wrong)


def by_hand(cut: list[tuple[range, range]], heads: slice) -> torch.Tensor:
    """Causal masks (2, HEADS, PROMPT, PROMPT), True where attended; each row's queries x keys are cut, not self."""
    mask = torch.ones(2, HEADS, PROMPT, PROMPT, dtype=torch.bool).tril()
    for row, (queries, keys) in enumerate(cut):
        for q in queries:
            for k in keys:
                if q != k:
                    mask[row, heads, q, k] = False
    return mask


@pytest.mark.parametrize(
    "case",
    [
        ("knockout:text->image", lambda image: [q for q in range(PROMPT) if q not in image], slice(None)),
        ("knockout:all->image:h0", lambda image: range(PROMPT), slice(0, 2)),
        ("knockout:last->image@0-2:h1", lambda image: [PROMPT - 1], slice(2, 4)),
        ("knockout:image->image", lambda image: image, slice(None)),
    ],
)
def test_knockout_equals_a_mask_cut_by_hand(decoder, ids, case):
    text, queries, heads = case
    mask = by_hand([(queries(i), i) for i in IMAGES], heads)
    additive = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    with applied(decoder, [text], GROUPS):
        cut = run(decoder, ids)
    assert same(cut, run(decoder, ids, attention_mask=additive))
    assert not same(cut, run(decoder, ids))
    if decoder.config._attn_implementation == "sdpa":
        assert same(cut, run(decoder, ids, attention_mask=mask))


def test_knockouts_add_up_and_keep_the_mask_that_was_given(decoder, ids):
    """Two knockouts in two contexts or one; and on top of a caller's 4-D mask, Boolean even under eager attention."""
    both = ["knockout:last->text@0-1:h0", "knockout:image->object@1-2"]
    with applied(decoder, both, GROUPS):
        together = run(decoder, ids)
        uncached = decoder(ids, use_cache=False).last_hidden_state
    with applied(decoder, both[:1], GROUPS), applied(decoder, both[1:], GROUPS):
        assert torch.equal(uncached, decoder(ids, use_cache=False).last_hidden_state)
        assert same(together, run(decoder, ids))
    assert torch.equal(uncached, together["out"])
    everywhere = ["knockout:text->image"]
    with applied(decoder, everywhere, GROUPS):
        wanted = run(decoder, ids)
        assert same(wanted, run(decoder, ids, attention_mask=by_hand([(range(0), range(0))] * 2, slice(None))))


def test_one_row_of_a_padded_batch_equals_the_row_alone(decoder, ids):
    short = PROMPT - 5
    alone = [TokenGroups(short, GROUPS[1].named)]
    texts = ["knockout:text->image:h1", "knockout:last->all@0"]
    with applied(decoder, texts, alone):
        wanted = run(decoder, ids[1:, :short])["out"][0]
    right = torch.ones(2, PROMPT, dtype=torch.long)
    right[1, short:] = 0
    with applied(decoder, texts, [GROUPS[0], *alone]):
        got = run(decoder, ids, attention_mask=right)["out"]
    assert torch.allclose(got[1, :short], wanted, atol=2e-6)
    left = torch.tensor([[1] * PROMPT, [0] * 5 + [1] * short])
    padded = torch.cat([ids[1:, :5], ids[1:, :short]], dim=1)
    moved = TokenGroups(PROMPT, {name: [p + 5 for p in at] for name, at in GROUPS[1].named.items()})
    with applied(decoder, texts, [GROUPS[0], moved]):
        positions = (left.cumsum(1) - 1).clamp(min=0)
        got = run(decoder, torch.cat([ids[:1], padded]), attention_mask=left, position_ids=positions)["out"]
    assert got.isfinite().all()
    assert torch.allclose(got[1, 5:], wanted, atol=2e-6)


STEPS = [
    "knockout:text->image:h1",
    "knockout:last->all@1",
    "knockout:last->0-3,image@2:h0",
    "replace:object=mean@input",
]


@torch.no_grad()
def greedy(decoder: Any, ids: torch.Tensor, count: int, cached: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens, logits), with a cache step by step or with the whole sequence anew for each token."""
    cache, sequence, given, every = DynamicCache(), ids, ids, []
    for _ in range(count):
        if cached:
            states = decoder(input_ids=given, past_key_values=cache, use_cache=True).last_hidden_state
        else:
            states = decoder(input_ids=sequence, use_cache=False).last_hidden_state
        every.append(states[:, -1] @ decoder.embed_tokens.weight.T)
        given = every[-1].argmax(-1, keepdim=True)
        sequence = torch.cat([sequence, given], dim=1)
    return sequence[:, ids.shape[1] :], torch.stack(every)


def test_steps_equal_the_whole_prefix_anew(decoder, ids):
    with applied(decoder, STEPS, GROUPS):
        tokens, logits = greedy(decoder, ids, 6, cached=True)
    with applied(decoder, STEPS, GROUPS):
        again, anew = greedy(decoder, ids, 6, cached=False)
    assert torch.equal(tokens, again)
    assert (logits - anew).abs().max() <= 1e-5 * anew.abs().max()
    # Every step was intervened in: the same tokens without the knockouts in steps give other logits.
    with torch.no_grad():
        cache = DynamicCache()
        with applied(decoder, STEPS, GROUPS):
            decoder(input_ids=ids, past_key_values=cache, use_cache=True)
        free = decoder(input_ids=tokens[:, :1], past_key_values=cache, use_cache=True).last_hidden_state
    assert not torch.allclose(free[:, -1] @ decoder.embed_tokens.weight.T, logits[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("text", "heads"), [("knockout:last->image", slice(None)), ("knockout:text->image:h1", slice(2, 4))]
)
def test_a_step_equals_a_mask_cut_by_hand(decoder, ids, text, heads):
    """The second of two steps, both with the edges cut; generated tokens are `text` and, each in its turn, `last`."""
    after = []
    for step in ("knockout", "by hand", "free"):
        cache = DynamicCache()
        run_on = {"past_key_values": cache, "use_cache": True}
        with torch.no_grad(), ExitStack() as stack:
            decoder(input_ids=ids, **run_on)
            if step == "knockout":
                stack.enter_context(applied(decoder, [text], GROUPS))
            for length in (PROMPT + 1, PROMPT + 2):
                mask = torch.zeros(2, HEADS, 1, length)
                for row, image in enumerate(IMAGES):
                    mask[row, heads, :, list(image)] = -torch.inf
                more = {"attention_mask": mask} if step == "by hand" else {}
                out = decoder(input_ids=ids[:, :1], **run_on, **more).last_hidden_state
            after.append(out)
    assert torch.equal(after[0], after[1])
    assert not torch.allclose(after[0], after[2], atol=1e-4)


@pytest.mark.parametrize("split", [3, 7, 12, PROMPT - 1])
def test_prefill_in_pieces_equals_the_whole(decoder, ids, split):
    texts = ["knockout:text->image:h1", "knockout:image->image@1", "knockout:last->text", "replace:object=zero@1"]
    with applied(decoder, texts, GROUPS):
        whole = run(decoder, ids)["out"]
    cache = DynamicCache()
    with torch.no_grad(), applied(decoder, texts, GROUPS):
        first = decoder(input_ids=ids[:, :split], past_key_values=cache, use_cache=True).last_hidden_state
        rest = decoder(input_ids=ids[:, split:], past_key_values=cache, use_cache=True).last_hidden_state
    assert torch.allclose(torch.cat([first, rest], dim=1), whole, atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_generate(attention, ids):
    torch.manual_seed(0)
    model = noisy(LlamaForCausalLM._from_config(LlamaConfig(**SHAPE), attn_implementation=attention))
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with applied(model.model, STEPS, GROUPS):
        tokens = model.generate(ids, **settings)
    sequence = ids
    with torch.no_grad(), applied(model.model, STEPS, GROUPS):
        for _ in range(6):
            sequence = torch.cat([sequence, model(sequence, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(tokens, sequence)
    assert not torch.equal(tokens, model.generate(ids, **settings))


def test_a_capture_reads_what_the_cache_would_hold(decoder, ids):
    texts = ["knockout:text->image@0-1:h0", "replace:image=zero@0"]
    read: dict[str, torch.Tensor] = {}
    cache = ReadingCache(lambda n, k, v: read.update({f"key{n}": k.clone(), f"value{n}": v.clone()}))
    with torch.no_grad(), applied(decoder, texts, GROUPS):
        decoder(input_ids=ids, past_key_values=cache, use_cache=True)
        wanted = run(decoder, ids)
    assert same(read, {k: v for k, v in wanted.items() if k in read})
    assert len(read) == 2 * LAYERS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nothing_is_nan_even_when_everything_is_cut(decoder, ids, dtype):
    with applied(decoder.to(dtype), ["knockout:all->all"], GROUPS):
        found = run(decoder, ids)
    assert all(v.isfinite().all() for v in found.values())
    # Each token attends to itself alone, so its heads give its own values.
    values = found["value0"].repeat_interleave(HEADS // KV, dim=1).transpose(1, 2).flatten(2)
    assert torch.equal(found["heads0"], values)


# --- an attention that does not do as the mask says -------------------------------------------------------------------


def deaf(module, query, key, value, mask, **kwargs):
    """Ignores its mask."""
    return sdpa_attention_forward(module, query, key, value, None, **kwargs)


def deaf_in_steps(module, query, key, value, mask, **kwargs):
    return sdpa_attention_forward(module, query, key, value, mask if query.shape[2] > 1 else None, **kwargs)


def one_mask_for_all(module, query, key, value, mask, **kwargs):
    return sdpa_attention_forward(module, query, key, value, None if mask is None else mask[:, :1], **kwargs)


def heads_dealt_out(module, query, key, value, mask, **kwargs):
    """Query head h reads key-value head h mod 2, where the mask takes it to read h / 2."""
    order = [0, 2, 1, 3]
    mask = None if mask is None else mask[:, order]
    out, _ = sdpa_attention_forward(module, query[:, order], key, value, mask, **kwargs)
    return out[:, :, order], None


def hears_all_but_one_edge(module, query, key, value, mask, **kwargs):
    if mask is not None:
        mask = mask.clone()
        mask[1, -1, -1, 3] = 0
    return sdpa_attention_forward(module, query, key, value, mask, **kwargs)


def obeys(module, query, key, value, mask, **kwargs):
    return sdpa_attention_forward(module, query, key, value, mask, **kwargs)


@pytest.fixture
def register() -> Iterator[Callable[[Any, Any], None]]:
    names = []

    def use(decoder: Any, function: Any) -> None:
        names.append(f"test_{function.__name__}")
        ALL_ATTENTION_FUNCTIONS.register(names[-1], function)
        decoder.config._attn_implementation = names[-1]

    yield use
    for name in names:
        ALL_ATTENTION_FUNCTIONS._global_mapping.pop(name, None)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("function", [deaf, one_mask_for_all, heads_dealt_out, hears_all_but_one_edge])
@pytest.mark.parametrize("text", [CUT_BY_HEAD, "knockout:all->image@1:h1"])
def test_attention_that_ignores_masks_is_refused(family, function, text, ids, register):
    decoder = make(family, "sdpa")
    register(decoder, function)
    before = run(decoder, ids)
    with pytest.raises(MaskIgnored, match=f"test_{function.__name__}") as caught, applied(decoder, [text], GROUPS):
        run(decoder, ids)
    assert "\n" not in str(caught.value)
    assert same(before, run(decoder, ids))
    assert hooks(decoder) == 0


def test_attention_that_ignores_masks_only_in_steps_is_refused(ids, register):
    decoder = make("qwen2", "sdpa")
    register(decoder, deaf_in_steps)
    with ExitStack() as stack:
        stack.enter_context(applied(decoder, ["knockout:text->image"], GROUPS))
        greedy(decoder, ids, 1, cached=True)
        with pytest.raises(MaskIgnored):
            greedy(decoder, ids, 2, cached=True)


def test_an_unknown_attention_that_obeys_masks_is_welcome(ids, register):
    decoder = make("qwen2", "sdpa")
    with applied(decoder, [CUT_BY_HEAD], GROUPS):
        wanted = run(decoder, ids)
    register(decoder, obeys)
    with applied(decoder, [CUT_BY_HEAD], GROUPS):
        assert same(wanted, run(decoder, ids))


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "flex_attention", "paged|eager"])
def test_attention_without_edge_masks_is_refused_before_it_runs(name):
    decoder = make("llama", "eager")
    decoder.config._attn_implementation_internal = name
    with pytest.raises(MaskIgnored, match=re.escape(name)), applied(decoder, ["knockout:text->image"], GROUPS):
        pytest.fail("entered")
    with (
        pytest.raises(BadIntervention, match="changed nothing"),  # let in: a replacement needs no mask
        applied(decoder, ["replace:image=zero@input"], GROUPS),
    ):
        pass


def test_measuring_is_heard_by_nobody_else(ids):
    """Listeners of o_proj and of the layer hear one pass, and the cache takes each token once."""
    decoder = make("llama", "sdpa")
    heard = []
    handles = [
        decoder.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda *_: heard.append("o_proj")),
        decoder.layers[1].self_attn.register_forward_hook(lambda *_: heard.append("self_attn")),
    ]
    cache = DynamicCache()
    with torch.no_grad(), applied(decoder, [CUT_BY_HEAD], GROUPS):
        decoder(input_ids=ids, past_key_values=cache, use_cache=True)
    assert heard == ["o_proj", "self_attn"]
    assert [layer.get_seq_length() for layer in cache.layers] == [PROMPT] * LAYERS
    for handle in handles:
        handle.remove()
