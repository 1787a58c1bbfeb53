"""Interventions in captures: what is read is what the changed model computes, and only from the change on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import decoders
import plugins
import pytest
import torch
from fakes import tree
from reading import loaded, plainly

from vkvdb import extraction
from vkvdb.errors import BadIntervention, BadOption
from vkvdb.ingestion import ingest
from vkvdb.jobs import from_json, to_json
from vkvdb.models import _checkpoint
from vkvdb.models._changes import fitting, groups_of
from vkvdb.models._checks import pictures, tokens_of
from vkvdb.models._reader import Prompt
from vkvdb.paths import Home
from vkvdb.planning import Choices, extract_job, score_jobs
from vkvdb.queue import Queue
from vkvdb.store import Store
from vkvdb.types import Site
from vkvdb.worker import Worker
from vkvdb_cli.main import main

Tokens = dict[Site, torch.Tensor]
TOWER, PROJECTOR = Site("encoder", 1, "hidden"), Site("projector", 0, "hidden")
IMAGES = [(90, 60), (50, 80)]


def read(path: Path, home: Home, *interventions: str, **options: Any) -> list[Tokens]:
    """Every site of two images."""
    reader = loaded(path, home, interventions=interventions, **options)
    return [tokens_of(stacks) for _, stacks in reader.capture(pictures(IMAGES), list(reader.shapes))]


def differ(a: list[Tokens], b: list[Tokens]) -> set[Site]:
    """The sites at which the tokens of both images differ; of none may those of one alone."""
    each = [{s for s in x if not torch.equal(x[s], y[s])} for x, y in zip(a, b, strict=True)]
    assert each[0] == each[1]
    return each[0]


def after(layer: int, reader_sites: list[Site]) -> set[Site]:
    """All that a change within `layer`'s attention reaches: its own output, and all of the layers after it."""
    return {
        s
        for s in reader_sites
        if s.stage == "decoder" and (s.layer > layer or (s.layer == layer and s.part == "hidden"))
    }


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_knockout_changes_the_layers_after_it_only(small_onevision: Path, home: Home, attention: str) -> None:
    plain = read(small_onevision, home, attention=attention)
    cut = read(small_onevision, home, "knockout:image->image@1:h0", attention=attention)
    assert differ(plain, cut) == after(1, list(plain[0]))
    assert differ(plain, read(small_onevision, home, "knockout:image->text@0", attention=attention)) == after(
        0, list(plain[0])
    )
    other = read(small_onevision, home, "knockout:image->image@1:h1", attention=attention)
    assert differ(cut, other) == after(1, list(plain[0]))


def test_a_replacement_at_the_input_changes_the_decoder_not_what_comes_before(
    small_onevision: Path, home: Home
) -> None:
    plain = read(small_onevision, home)
    gone = read(small_onevision, home, "replace:base=zero@input")
    assert differ(plain, gone) == {s for s in plain[0] if s.stage == "decoder"}
    first = Site("decoder", 0, "value")
    bias = gone[0][first][:, :1]
    assert torch.equal(gone[0][first], bias.expand_as(gone[0][first]))  # all cells alike: no image is left


def test_a_replacement_after_a_layer_is_what_is_read_there(small_onevision: Path, home: Home) -> None:
    plain, mean = read(small_onevision, home), read(small_onevision, home, "replace:base=zero@1")
    assert (mean[0][Site("decoder", 1, "hidden")] == 0).all()
    assert differ(plain, mean) == after(1, list(plain[0]))


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision", "qwen2_5_vl"])
def test_every_family_is_changed(
    tiny_model: Callable[[str], Path], readers: Callable[[str], Any], home: Home, family: str
) -> None:
    sites = [Site("decoder", n, "value") for n in (0, 1, 2)]
    plain = readers(family)
    changed = loaded(tiny_model(family), home, interventions=("knockout:image1->image@0:h0",))
    a, b = (tokens_of(r.capture(pictures([(80, 50)]), sites)[0][1]) for r in (plain, changed))
    assert [torch.equal(a[s], b[s]) for s in sites] == [True, False, False]


def test_the_whole_of_the_text_cut_is_the_image_alone(small_onevision: Path, home: Home) -> None:
    """By another way: a mask made by hand, given to the plain model."""
    cut = loaded(small_onevision, home, interventions=("knockout:image->text",), attention="eager")
    block = cut.block(pictures(IMAGES))
    tokens = [tokens_of(s) for _, s in cut.read(block, [Site("decoder", 2, "key")])]
    ids = block.inputs["input_ids"]
    image = ids == cut.image_id
    allowed = torch.ones(ids.shape[1], ids.shape[1]).tril().bool() & ~(image[:, :, None] & ~image[:, None])
    block.inputs["attention_mask"] = torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf)[:, None]
    keys = plainly(cut, block).past_key_values.layers[2].keys
    for row, (grid, got) in enumerate(zip(block.grids, tokens, strict=True)):
        assert torch.allclose(got[Site("decoder", 2, "key")], keys[row][:, torch.tensor(grid.positions)], atol=1e-6)


@pytest.mark.parametrize(("family", "view"), [("llava_next", "tiles"), ("llava_onevision", "base"), ("llava", "base")])
def test_groups_are_the_positions_of_the_sequence(
    tiny_model: Callable[[str], Path], home: Home, family: str, view: str
) -> None:
    reader = loaded(tiny_model(family), home, interventions=("replace:image=zero@input",), view=view)
    block = reader.block(pictures([(500, 333), (200, 300)]))
    for row, (groups, grid) in enumerate(zip(block.groups, block.grids, strict=True)):
        line = block.inputs["input_ids"][row]
        image = (line == reader.image_id).nonzero()[:, 0].tolist()
        assert list(groups.named["image"]) == list(groups.named["image1"]) == image
        assert tuple(groups.named[view]) == grid.positions
        parts = [p for name in ("base", "tiles", "newline") for p in groups.named.get(name, [])]
        assert sorted(parts) == image
        assert ("tiles" in groups.named) == (view == "tiles")
        assert ("newline" in groups.named) == (family != "llava")
        assert groups.prompt == len(image) + image[0] + 1  # the prompt goes on: no last token is run
        assert len(groups.find("last", 0, len(line) if row == 0 else groups.prompt - 1)) == 0


def test_several_images_have_a_group_each(small_onevision: Path, home: Home) -> None:
    reader = loaded(small_onevision, home, interventions=("knockout:image2->image1",))
    images = tuple(pictures([(60, 60), (80, 40)]))
    block = reader.prompts([Prompt(reader.chat.question("Which?", images=2), images)])
    (groups,) = block.groups
    first, second = (list(groups.named[f"image{n}"]) for n in (1, 2))
    assert first[-1] < second[0]
    assert [*first, *second] == list(groups.named["image"])
    assert tuple(p for p in groups.named["base"] if p in second) == block.grids[1].positions
    assert groups.prompt == block.inputs["input_ids"].shape[1]
    value = [Site("decoder", 1, "value")]
    plain = loaded(small_onevision, home)
    before, now = ([tokens_of(s)[value[0]] for _, s in r.read(block, value)] for r in (plain, reader))
    assert [torch.equal(a, b) for a, b in zip(before, now, strict=True)] == [True, False]


def test_groups_of_padding_are_their_views() -> None:
    from vkvdb.models._token_map import BASE, Panel, TokenMap, even

    tokens = TokenMap(10, 10, (Panel(BASE, even(-10, 10, 3), even(-10, 10, 3), "end"),))
    groups = groups_of(15, [tokens], [4], ended=True)
    assert groups.named == {
        "base": [*range(4, 13)],
        "newline": [13],
        "image1": [*range(4, 14)],
        "image": [*range(4, 14)],
    }


def test_text_vectors_are_those_of_the_model_as_it_is(small_onevision: Path, home: Home) -> None:
    sites = [Site("decoder", n, "value") for n in range(3)]
    plain, changed = (
        loaded(small_onevision, home, interventions=i).text("a cat", sites) for i in ((), ("knockout:all->all",))
    )
    assert all(torch.equal(plain[s], changed[s]) for s in sites)


# --- what can be asked for --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("knockout:image->imagee", "no group imagee; there are: all, base, image, image1, newline, text"),
        ("knockout:image->tiles", "no group tiles"),
        ("knockout:last->image", "a capture ends with its image and has no last token"),
        ("knockout:text->image@0", "all text comes before the image"),
        ("knockout:text->base,newline", "all text comes before the image"),
        ("knockout:image->image@7", "there is no layer 7; there are: 0-2"),
        ("knockout:image->image@2", "nothing that is read comes after it"),
        ("knockout:image->image:h2", "no key-value head 2; there are: 0-1"),
        ("replace:image=zero@3", "there is no layer 3"),
        ("replace:image=zero@2", "nothing that is read comes after it"),
        ("replace:image=mean:coco@input", "by zero or by mean"),
    ],
)
def test_what_would_change_nothing_is_refused_beforehand(
    small_onevision: Path, home: Home, text: str, says: str
) -> None:
    found = _checkpoint.resolve(str(small_onevision), home)
    shapes = [s for s in found.sites() if s.site.part != "hidden"]
    with pytest.raises(BadIntervention, match=says):
        fitting([text], found, shapes)


def test_one_meaning_has_one_text(small_onevision: Path, home: Home) -> None:
    found = _checkpoint.resolve(str(small_onevision), home)
    same = ["knockout:image->base@0-2:h0-1", "knockout:image->base", "knockout:image->base@0,1,2"]
    assert fitting(same, found, found.sites()) == ("knockout:image->base",)
    assert fitting(["knockout:image->tiles@1"], found, found.sites(), view="tiles") == ("knockout:image->tiles@1",)
    hidden = [s for s in found.sites() if s.site == Site("decoder", 2, "hidden")]
    assert fitting(["replace:image=zero@2"], found, hidden) == ("replace:image=zero@2",)
    assert fitting([], found, ()) == ()
    tower = [s for s in found.sites() if s.site in {TOWER, PROJECTOR}]
    with pytest.raises(BadIntervention, match="nothing that is read"):
        fitting(["replace:image=zero@input"], found, tower)


def test_what_turns_out_to_change_nothing_says_what_a_capture_runs(small_onevision: Path, home: Home) -> None:
    reader = loaded(small_onevision, home, interventions=("knockout:900->image",))
    hooks = []
    for _ in range(2):  # transformers adds a few of its own at the first run
        with pytest.raises(BadIntervention, match=r"changed nothing.*up to its image's end") as caught:
            reader.capture(pictures(IMAGES), [Site("decoder", 2, "key")])
        hooks.append(decoders.hooks(reader.model))
    assert "\n" not in str(caught.value)
    assert hooks[0] == hooks[1]


def test_models_without_a_decoder_refuse(tiny_dinov2: Path, home: Home) -> None:
    for name in (tiny_dinov2, "pixels"):
        with pytest.raises(BadOption, match=r"--intervene knockout:image->image: .* no decoder"):
            loaded(name, home, interventions=("knockout:image->image",))
        found = _checkpoint.resolve(str(name), home)
        with pytest.raises(BadOption, match="no decoder"):
            fitting(["knockout:image->image"], found, found.sites())


# --- jobs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def dots(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("VKVDB_PLUGINS", str(plugins.write(tmp_path / "plugins")))
    monkeypatch.setenv("VKVDB_DATASET", "dots-test")
    return home


def test_a_job_reads_the_changed_model_under_an_id_of_its_own(dots: Home, small_onevision: Path) -> None:
    store = Store(dots.store)
    ingest("dots-test", None, dots, store)
    site = Site("decoder", 2, "value")

    def kept(*texts: str) -> tuple[str, torch.Tensor]:
        choices = Choices(parts=("value",), interventions=texts)
        plan = extract_job(dots, store, model=str(small_onevision), dataset="dots-test", choices=choices)
        spec = plan.job.spec
        assert from_json(to_json(spec)) == spec
        Queue(dots.queue).enqueue(plan.job)
        (outcome,) = Worker(dots, store, Queue(dots.queue)).run_until_empty()
        assert outcome.state == "done", outcome
        assert extraction.load_options(plan.job).interventions == texts
        ((_, tokens),) = store.open_capture(spec.capture.id).read([3], [site])
        return spec.capture.id, tokens[site]

    plain, cut, gone = kept(), kept("knockout:image->image@1:h0"), kept("replace:base=mean@0")
    assert len({plain[0], cut[0], gone[0]}) == 3
    assert not torch.equal(plain[1], cut[1])
    assert not torch.equal(cut[1], gone[1])


def test_controls_of_the_same_code_are_changed_too(dots: Home, small_onevision: Path) -> None:
    store = Store(dots.store)
    ingest("dots-test", None, dots, store)
    plans = score_jobs(
        dots,
        store,
        task="correspondence",
        model=str(small_onevision),
        dataset="dots-test",
        parameters={},
        choices=Choices(interventions=("knockout:image->image@0",)),
    )
    told = {p.checkpoint.name: p.job.spec.capture.interventions for p in plans}
    changed = ("knockout:image->image@0",)
    assert told.pop("pixels") == ()
    assert set(told) == {"small", "small@random:0", "small@blank", "small@random-decoder:0"}
    assert set(told.values()) == {changed}


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["knockout:image"], "expected knockout:QUERIES->KEYS"),
        (["knockout:image->image@9"], "there is no layer 9"),
        (["replace:image=zero@input", "replace:base=zero@1-2"], "expected knockout"),
    ],
)
@pytest.mark.parametrize("command", [["score", "--task", "correspondence"], ["extract"]])
def test_a_bad_intervention_is_one_line_and_nothing_is_queued(  # noqa: PLR0917 - three of them are parameters
    dots: Home,
    small_onevision: Path,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    texts: list[str],
    says: str,
) -> None:
    ingest("dots-test", None, dots, Store(dots.store))
    before = tree(dots.store)
    capsys.readouterr()
    options = [word for text in texts for word in ("--intervene", text)]
    assert main([*command, "--model", str(small_onevision), *options]) == 1
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1
    assert tree(dots.store) == before
    assert not dots.queue.exists()


def test_the_command_queues_what_it_was_told(
    dots: Home, small_onevision: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["extract", "--model", str(small_onevision), "--intervene", "knockout:base,image->image@1,0:h1"]
    assert main(words) == 0
    assert main([*words[:-1], "knockout:base,image->image@0-1:h1"]) == 0
    assert "already queued" in capsys.readouterr().out
