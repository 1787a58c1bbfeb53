"""S of keys: its definition, planted heads, halves, resuming, refusals, and the picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import plugins
import pytest
import tiny
import torch
from PIL import Image

from vkvdb import calibrating, planning_keys
from vkvdb.agnostic import TO_IMAGE, find
from vkvdb.calibrating import Moments, halves
from vkvdb.errors import BadOption, NotCalibrated
from vkvdb.ingestion import ingest
from vkvdb.jobs import Calibrate, Score, from_json, to_json
from vkvdb.models._checkpoint import resolve
from vkvdb.mosaic import PANEL, colours
from vkvdb.paths import Home
from vkvdb.planning import Choices, Planned
from vkvdb.planning_keys import calibrate_jobs, calibration, conditions_of, default_calibration, downstream_jobs
from vkvdb.queue import Queue
from vkvdb.samples import ImagePair
from vkvdb.store import ImageRow, Store
from vkvdb.types import Site
from vkvdb.verification import problems
from vkvdb.worker import Worker
from vkvdb_cli.main import main

LAYERS, HEADS = 6, 4
PLANTED = {(3, 1), (4, 0), (5, 2)}


@pytest.fixture
def store(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store in which the plug-in dataset is ingested."""
    monkeypatch.setenv("VKVDB_PLUGINS", str(plugins.write(tmp_path / "plugins")))
    made = Store(home.store)
    ingest("dots-test", None, home, made)
    return made


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of 6 layers x 4 heads."""
    folder = tmp_path_factory.mktemp("models") / "plain"
    return tiny.llava_onevision(folder, side=56, layers=LAYERS, heads=4, kv=HEADS, hidden=64)


@pytest.fixture(scope="module")
def planted(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the key projection of some heads zeroed: what is left of their keys is the bias."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("models") / "planted"
    shutil.copytree(plain, folder)
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    for layer, head in PLANTED:
        (name,) = (n for n in weights if f"layers.{layer}.self_attn.k_proj.weight" in n and "vision" not in n)
        dim = weights[name].shape[0] // HEADS
        weights[name][head * dim : (head + 1) * dim] = 0
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def run(home: Home, store: Store, model: Path, **more: Any) -> list[Planned]:
    """Queue a model's calibration and do it."""
    plans = calibrate_jobs(
        home,
        store,
        model=str(model),
        dataset="dots-test",
        choices=Choices(**more),
        controls=False,
    )
    queue = Queue(home.queue)
    for plan in plans:
        queue.enqueue(plan.job)
    outcomes = Worker(home, store, queue).run_until_empty()
    assert [o.state for o in outcomes] == ["done"] * len(plans), outcomes
    return plans


def rows_of(store: Store, plan: Planned) -> list[dict[str, Any]]:
    rows = store.read_rows("key_variance", plan.job.id, plan.job.edition).to_pylist()
    return [{**r, "layer": Site.from_number(r["site"]).layer, "part": Site.from_number(r["site"]).part} for r in rows]


# --- moments ---


def test_moments_are_those_of_the_formula():
    draw = np.random.default_rng(0)
    images = 1000 + draw.standard_normal((9, 2, 3, 4))  # far from 0: naive sums of squares would lose digits
    shift = np.full((2, 1, 4), 999.5)
    one, two = Moments((2, 3, 4)), Moments((2, 3, 4))
    for n, image in enumerate(images):
        (one if n < 4 else two).add(image)
    whole = one.joined(two)
    for moments, those in ((whole, images), (one, images[:4])):
        trace = those.var(0, ddof=1).sum(-1)
        for off in (0.0, shift):
            wanted = trace / ((those - off) ** 2).sum(-1).mean(0)
            assert np.allclose(moments.variance(off), wanted, rtol=1e-9, atol=0)


def test_a_key_that_is_always_zero_does_not_vary():
    moments = Moments((1, 2))
    moments.add(np.zeros((1, 2)))
    moments.add(np.zeros((1, 2)))
    assert moments.variance().tolist() == [0.0]


# --- halves ---


def row(n: int) -> ImageRow:
    return ImageRow(image=n, name=f"i{n}", path="", width=1, height=1, sha256="", bytes=0)


def pair(one: int, two: int, cluster: str = "") -> ImagePair:
    named = {"source": f"i{one}", "target": f"i{two}", "source_points": (), "target_points": (), "target_box": None}
    return ImagePair(id=f"{one}-{two}", group="", cluster=cluster or f"{one}-{two}", **named)


def test_halves_are_seeded_even_and_share_no_cluster():
    rows = [row(n) for n in range(20)]
    samples = [pair(0, 1), pair(1, 2), pair(2, 99), pair(5, 6, "clip"), pair(7, 8, "clip")]
    drawn = [halves(rows, samples, seed) for seed in range(8)]
    for half in drawn:
        assert {1, 2} == set(half)
        assert half.count(1) == 10
        assert len({half[n] for n in (0, 1, 2)}) == 1
        assert len({half[n] for n in (5, 6, 7, 8)}) == 1
    assert drawn[3] == halves(rows, samples, 3)
    assert len(set(map(tuple, drawn))) > 1


def test_images_of_one_cluster_have_no_halves():
    with pytest.raises(BadOption, match="independent of each other"):
        halves([row(n) for n in range(6)], [pair(n, n + 1) for n in range(5)], 0)


# --- the job ---


def test_planted_heads_are_found_exactly(home: Home, store: Store, planted: Path, plain: Path):
    for model, wanted in ((planted, PLANTED), (plain, set())):
        (plan,) = run(home, store, model)
        rows = rows_of(store, plan)
        for part, unbiased in (("key", False), ("key_unrotated", False), ("key_unrotated", True)):
            those = [r for r in rows if (r["part"], r["unbiased"]) == (part, unbiased)]
            assert len(those) == LAYERS * HEADS * 3
            found = find(those)
            assert found.heads == wanted, (part, unbiased, found)
            assert not wanted or found.jaccard == 1.0
        assert not [r for r in rows if r["part"] == "key" and r["unbiased"]]
        manifest = store.job(plan.job.id, 0)
        assert manifest is not None
        assert manifest["notes"] == {"bias": True}
        assert store.has_token_map(plan.job.spec.capture.id)
        assert {r["n"] for r in rows if r["half"] == 0} == {manifest["n"]}
        assert not list(problems(store))


def test_the_number_is_that_of_a_plain_loop(home: Home, store: Store, plain: Path):
    from vkvdb import extraction
    from vkvdb.images import open_image

    (plan,) = run(home, store, plain, limit=11)
    rows = rows_of(store, plan)
    model: Any = extraction.load_model(plan.job, home)
    sites = [Site("decoder", 2, part) for part in ("key", "key_unrotated")]
    manifest = store.dataset(plan.job.spec.capture.dataset)
    root = extraction.dataset_root(home, store, manifest)
    tokens: dict[Site, list[Any]] = {site: [] for site in sites}
    for start in (0, 8):
        read = model.capture([open_image(root, r) for r in plan.rows[start : start + 8]], sites)
        for grid, stacks in read:
            for site, found in zip(stacks[0].sites, stacks[0].tokens, strict=True):
                tokens[site].append(found.double().numpy())
            assert (grid.rows, grid.cols) == (4, 4)
    bias = model.key_bias(2).detach().double().numpy()[:, None, None]
    for site in sites:
        for off, unbiased in ((0.0, False), (bias, True))[: 1 + (site.part == "key_unrotated")]:
            images = np.stack(tokens[site])
            norm = ((images - off) ** 2).sum(-1).mean(0)
            wanted = (images.var(0, ddof=1).sum(-1) / norm).mean((1, 2))
            got = [
                r["value"]
                for r in rows
                if (r["layer"], r["part"], r["unbiased"], r["half"]) == (2, site.part, unbiased, 0)
            ]
            assert got == pytest.approx(wanted.tolist(), rel=1e-9)
    by_part = [[r["value"] for r in rows if r["part"] == p and not r["unbiased"]] for p in ("key", "key_unrotated")]
    assert by_part[0] == pytest.approx(by_part[1], rel=1e-4)  # a rotation changes neither trace nor norm


def test_a_job_that_died_gives_the_same_bytes(home: Home, store: Store, plain: Path, monkeypatch: pytest.MonkeyPatch):
    (plan,) = run(home, store, plain, limit=10)

    def read(edition: int) -> bytes:
        return (store.root / store.row_shards("key_variance", plan.job.id, edition)[0]["file"]).read_bytes()

    again = dataclasses.replace(plan.job, edition=1)
    queue = Queue(home.queue)
    queue.enqueue(again)

    def die(step: str) -> None:
        if step == "shard computed":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Worker(home, store, queue, on_step=die).run_until_empty()
    assert not store.row_shards("key_variance", plan.job.id, 1)
    (outcome,) = Worker(home, store, queue).run_until_empty()
    assert outcome.state == "done"
    assert read(1) == read(0)


def test_a_model_without_a_bias_has_equal_rows(home: Home, store: Store, tmp_path: Path):
    model = tiny.llava(tmp_path / "llava", side=56)
    (plan,) = run(home, store, model, limit=6, layers=(1,))
    rows = [r for r in rows_of(store, plan) if r["part"] == "key_unrotated"]
    values = [[r["value"] for r in rows if r["unbiased"] is unbiased] for unbiased in (False, True)]
    assert values[0] == values[1]
    assert {r["layer"] for r in rows} == {1}
    manifest = store.job(plan.job.id, 0)
    assert manifest is not None
    assert manifest["notes"] == {"bias": False}


def test_a_specification_survives_json(home: Home, store: Store, plain: Path):
    twin: Planned
    plan, twin = calibrate_jobs(home, store, model=str(plain), dataset="dots-test", choices=Choices(limit=8, seed=3))
    assert twin.checkpoint.variant == "random:0"
    assert isinstance(plan.job.spec, Calibrate)
    assert from_json(to_json(plan.job.spec)) == plan.job.spec
    assert (plan.job.spec.seed, plan.job.spec.limit, plan.n) == (3, 8, 8)
    assert plan.job.spec.capture.selection == twin.job.spec.capture.selection != ""


def test_a_person_is_told_what_cannot_be_calibrated(home: Home, store: Store, plain: Path, tiny_dinov2: Path):
    def plan(model: Path = plain, **more: Any) -> None:
        calibrate_jobs(home, store, model=str(model), dataset="dots-test", choices=Choices(**more))

    with pytest.raises(BadOption, match="read from a decoder"):
        plan(tiny_dinov2)
    with pytest.raises(BadOption, match="--parts value: calibrate reads key and key_unrotated"):
        plan(parts=("value",))
    with pytest.raises(BadOption, match="two in each of two halves"):
        plan(limit=3)
    with pytest.raises(BadOption, match="name images that no score stands on"):
        default_calibration("org/model")
    assert default_calibration("toy@random:0") == "toyworld-val"
    found = resolve(str(plain), home)
    with pytest.raises(NotCalibrated, match=f"type: vkvdb calibrate --model {found.reference}"):
        calibration(store, found)


def test_images_of_two_sizes_are_refused_before_anything_is_queued(home: Home, store: Store, tiny_model: Any):
    """Qwen2.5-VL's grid follows the image; the other families' base view does not."""
    manifest = store.dataset_named("dots-test")
    assert manifest is not None
    first, second, *_ = store.images(manifest["hash"])
    rows = [first, dataclasses.replace(second, width=second.width + 56)]
    for family, choices, refused in (
        ("qwen2_5_vl", Choices(), True),
        ("qwen2_5_vl", Choices(square=56), False),
        ("llava", Choices(), False),
    ):
        found = resolve(str(tiny_model(family)), home)
        if refused:
            with pytest.raises(BadOption, match=r"--square not given: .* type --square N"):
                planning_keys._require_one_grid(found, rows, choices)
        else:
            planning_keys._require_one_grid(found, rows, choices)


def test_images_on_two_grids_of_as_many_cells_are_refused_at_work():
    tokens = {Site("decoder", 0, "key"): torch.zeros(1, 2, 2, 4)}
    read = [SimpleNamespace(grid=SimpleNamespace(rows=r, cols=4 // r), tokens=tokens) for r in (2, 1)]
    run = object.__new__(calibrating.Calibrating)
    source: Any = SimpleNamespace(
        blocks=1, spec=SimpleNamespace(block=8), read=lambda _block: read, images=lambda _block: read
    )
    run.source, run._half = source, [1, 2]
    with pytest.raises(BadOption, match="2 x 2 and 1 x 4 cells"):
        run._moments(lambda _steps: None)


# --- what follows ---


def test_the_group_is_what_is_cut_and_outlined(home: Home, store: Store, planted: Path, tmp_path: Path, capsys: Any):
    run(home, store, planted)
    conditions = conditions_of(home, store, model=str(planted), draws=2)
    assert list(conditions) == ["", "agnostic", "random 0", "random 1", "dependent", "all"]
    assert conditions["agnostic"] == (
        "knockout:text->image@3:h1",
        "knockout:text->image@4:h0",
        "knockout:text->image@5:h2",
    )
    # What the last layer attends to changes no image value.
    of_values = conditions_of(home, store, model=str(planted), draws=1, edges=TO_IMAGE)
    assert of_values["agnostic"] == ("knockout:image->image@3:h1", "knockout:image->image@4:h0")
    assert of_values["all"] == ("knockout:image->image",)
    plans = downstream_jobs(
        home,
        store,
        model=str(planted),
        dataset="dots-test",
        task="correspondence",
        parameters={},
        choices=Choices(),
        draws=1,
    )
    assert list(plans) == list(of_values)
    specs = [plan.job.spec for plan in plans.values()]
    assert [spec.capture.interventions for spec in specs] == list(of_values.values())
    assert [spec.parts for spec in specs] == [Score.parts, *[("value",)] * 4]
    draw = np.random.default_rng(0)
    files = [tmp_path / f"{n}.png" for n in range(2)]
    for file in files:
        Image.fromarray(draw.integers(0, 255, (56, 56, 3), dtype=np.uint8)).save(file)
    out = tmp_path / "keys.png"
    assert main(["mosaic", *map(str, files), "--model", str(planted), "--out", str(out)]) == 0
    with Image.open(out) as made:
        pixels = np.asarray(made)
        frames = (pixels == (213, 94, 0)).all(-1).sum()
    around = 4 * 2 * (PANEL + 6 - 2)  # a frame of two pixels around a panel and its margin
    assert frames == 2 * len(PLANTED) * around
    assert main(["mosaic", *map(str, files), "--model", str(planted), "--out", str(tmp_path / "keys.what")]) == 1
    assert "--out" in capsys.readouterr().err


def test_a_model_without_a_group_has_nothing_to_cut(home: Home, store: Store, plain: Path):
    run(home, store, plain)
    with pytest.raises(BadOption, match="so there is nothing to cut"):
        conditions_of(home, store, model=str(plain))


def test_colours_are_the_components_of_both_images():
    draw = np.random.default_rng(0)
    axis = np.eye(5)
    one = draw.standard_normal((3, 4, 1)) * 9 * axis[0] + draw.standard_normal((3, 4, 1)) * axis[3]
    two = one + 40 * axis[0]
    red = [c[..., 0] for c in colours([one, two])]
    assert red[0].max() < red[1].min()  # apart along the first component of both together
    same = colours([one, one])
    assert (same[0] == same[1]).all()
    still = colours([np.ones((2, 2, 8)), np.ones((2, 2, 8))])
    assert {int(v) for c in still for v in np.unique(c)} == {128}
    assert colours([one[..., :2], one[..., :2]])[0].shape == (3, 4, 3)
