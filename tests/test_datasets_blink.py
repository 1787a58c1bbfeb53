"""BLINK: questions and images out of parquet files as published, and what is wrong with them told in a line each."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vkvdb.datasets import _parquet
from vkvdb.datasets.blink import LETTERS, SUBTASKS, Blink
from vkvdb.errors import BadDataset, BadImage, UnsoundDataset
from vkvdb.images import open_image, read_bytes
from vkvdb.ingestion import ingest
from vkvdb.paths import Home
from vkvdb.samples import Question
from vkvdb.store import Store

Row = dict[str, Any]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
STRINGS = ("idx", "question", "sub_task", "answer", "prompt", "filename", "explanation")
SCHEMA = pa.schema(
    [(name, pa.string()) for name in STRINGS]
    + [(f"image_{n}", IMAGE) for n in (1, 2, 3, 4)]
    + [("choices", pa.list_(pa.string()))]
)
FILE = "val-00000-of-00001.parquet"


def colour(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 10, 3), number, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def question(subtask: str, number: int, images: int, answer: str = "(B)", choices: tuple[str, ...] = ("x", "y")) -> Row:
    row: Row = dict.fromkeys(STRINGS, "")
    row |= dict.fromkeys(("image_1", "image_2", "image_3", "image_4"))
    row |= {f"image_{n}": {"bytes": colour(10 * number + n), "path": f"{n}.png"} for n in range(1, images + 1)}
    words = {"idx": f"val_{subtask}_{number}", "question": f"what is {number}?", "sub_task": subtask}
    return {**row, **words, "prompt": f"what is {number}? (A) x (B) y", "choices": list(choices), "answer": answer}


def make(root: Path, change: Callable[[dict[str, list[Row]]], object] | None = None) -> Path:
    """Three questions of art style with three images, two of counting with one; two rows a group."""
    rows = {
        "Art_Style": [question("Art_Style", n, 3) for n in (1, 2, 3)],
        "Counting": [question("Counting", n, 1, "(D)", ("0", "3", "2", "1")) for n in (1, 2)],
    }
    if change:
        change(rows)
    for subtask, of in rows.items():
        (root / subtask).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(of, schema=SCHEMA), root / subtask / FILE, row_group_size=2)
    return root


def test_a_sound_tree(home: Home, tmp_path: Path) -> None:
    root, store = make(tmp_path / "blink"), Store(home.store)
    done = ingest("blink-val", root, home, store)
    assert done.manifest["problems"] == []
    assert done.manifest["samples"] == {"question": 5}
    found = [sample for _, sample in store.samples(done.manifest["hash"]) if isinstance(sample, Question)]
    assert [one.group for one in found] == ["Art_Style"] * 3 + ["Counting"] * 2
    last = found[4]
    assert (last.id, last.cluster, last.text) == ("val_Counting_2", "val_Counting_2", "what is 2?")
    assert (last.options, last.answer) == (("0", "3", "2", "1"), "1")
    assert found[2].shown == tuple(f"val_Art_Style_3/image_{n}" for n in (1, 2, 3))
    # Every image is read out of its cell, none is copied.
    rows = store.images(done.manifest["hash"])
    assert [row.path for row in rows[6:9]] == [f"Art_Style/{FILE}/2/image_{n}" for n in (1, 2, 3)]
    for row in rows:
        number, place = map(int, re.findall(r"_(\d+)", row.name))
        assert open_image(root, row).getpixel((0, 0)) == (10 * number + place,) * 3
        assert (row.width, row.height, row.bytes) == (10, 8, len(colour(10 * number + place)))
    assert not list(home.store.rglob("*.png"))


def test_a_file_that_changed_is_decoded_again(home: Home, tmp_path: Path) -> None:
    root, store = make(tmp_path / "blink"), Store(home.store)
    before = ingest("blink-val", root, home, store)
    assert not ingest("blink-val", root, home, store).new
    row = store.images(before.manifest["hash"])[0]

    def other(rows: dict[str, list[Row]]) -> None:
        rows["Art_Style"][0]["image_1"]["bytes"] = colour(200)

    changed = make(tmp_path / "other", other)
    (changed / "Art_Style" / FILE).replace(root / "Art_Style" / FILE)
    with pytest.raises(BadImage, match="not the file that was ingested"):
        open_image(root, row)
    after = ingest("blink-val", root, home, store)
    assert after.new
    assert open_image(root, store.images(after.manifest["hash"])[0]).getpixel((0, 0)) == (200, 200, 200)


def test_few_columns_are_kept(tmp_path: Path) -> None:
    root = make(tmp_path / "blink")
    for row in (0, 2, 1):
        for place in (1, 2, 3):
            path = root / "Art_Style" / FILE / str(row) / f"image_{place}"
            assert read_bytes(path) == colour(10 * (row + 1) + place)
    assert len(_parquet._kept) <= _parquet.KEPT


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (f"Art_Style/{FILE}/3/image_1", "there is no row 3, the file has 3"),
        (f"Art_Style/{FILE}/0/image_4", "row 0 holds no image in image_4"),
        (f"Art_Style/{FILE}/0/prompt", "there is no column prompt of images"),
        ("Art_Style/none.parquet/0/image_1", "there is no such file"),
        ("damaged.parquet/0/image_1", "can't be read from its parquet file"),
    ],
)
def test_a_cell_that_is_not_there(tmp_path: Path, path: str, why: str) -> None:
    root = make(tmp_path / "blink")
    (root / "damaged.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(BadImage, match=why):
        read_bytes(root / path)


def test_the_published_answers(shared: Path, home: Home, tmp_path: Path) -> None:
    """All 1,901 questions with their published ids and answers; the images are not at hand, so they are drawn."""
    lines = (shared / "data/blink/DERIVED_val_questions.jsonl").read_text().splitlines()
    answers = json.loads((shared / "data/blink/eval/val_answers.json").read_text())
    rows: dict[str, list[Row]] = {}
    for line in lines:
        facts = json.loads(line)
        head, *choices = re.split(r"\s*\([A-D]\)\s*", facts["prompt"])
        row = question(facts["sub_task"], 1, facts["num_images"], facts["answer"], tuple(choices))
        rows.setdefault(facts["sub_task"], []).append({**row, "idx": facts["idx"], "question": head})
    assert set(rows) == set(SUBTASKS)

    def real(made: dict[str, list[Row]]) -> None:
        made.clear()
        made.update(rows)

    reading = Blink().read(make(tmp_path / "blink", real), "val")
    assert reading.problems == []
    found = {one.id: one for one in reading.samples if isinstance(one, Question)}
    assert {key: LETTERS[one.options.index(one.answer)] for key, one in found.items()} == answers
    assert len([one for one in found.values() if one.group == "Art_Style"]) == 117
    assert sum(len(one.shown) for one in found.values()) == len(reading.images)


def edit(**values: Any) -> Callable[[dict[str, list[Row]]], object]:
    return lambda rows: rows["Art_Style"][1].update(values)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (edit(answer="(C)"), "its answer '(C)' is none of its 2 choices"),
        (edit(answer="hidden"), "its answer 'hidden' is none"),
        (edit(answer=None), "its answer 'None' is none"),
        (edit(choices=["x"]), "it has 1 choices"),
        (edit(choices=None), "it has no choices"),
        (edit(choices=["x", "x"]), "two of its choices are the same"),
        (edit(question=None), "it has no question"),
        (edit(idx=None), "it has no idx"),
        (edit(idx="val_Art_Style_1"), "its id is there twice"),
        (edit(image_1=None), "it has no image_1"),
        (edit(image_2=None), "it has no image_2"),
        (edit(image_1=None, image_2=None, image_3=None), "it has no image_1"),
        (edit(image_2={"bytes": colour(1)[:45], "path": ""}), "truncated|Truncated"),
        (edit(image_2={"bytes": None, "path": ""}), "row 1 holds no image in image_2"),
        (edit(image_2={"bytes": b"words", "path": ""}), "it is no image"),
    ],
)
def test_every_problem_is_told_and_the_rest_is_ingested(
    home: Home, tmp_path: Path, change: Callable[[dict[str, list[Row]]], object], what: str
) -> None:
    root = make(tmp_path / "blink", change)
    pattern = what if "|" in what else re.escape(what)
    with pytest.raises(UnsoundDataset, match=pattern):
        ingest("blink-val", root, home, Store(home.store))
    done = ingest("blink-val", root, home, Store(home.store), skip_bad=True)
    assert [bool(re.search(pattern, one["what"])) for one in done.manifest["problems"]] == [True]
    assert f"Art_Style/{FILE}" in done.manifest["problems"][0]["where"]
    assert done.manifest["samples"] == {"question": 4}


def test_what_is_missing_is_said_and_where_it_is_published(tmp_path: Path) -> None:
    root = make(tmp_path / "blink")
    with pytest.raises(
        BadDataset, match=r"no folder of a subtask; expected .*huggingface\.co/datasets/BLINK-Benchmark"
    ):
        Blink().read(tmp_path, "val")
    (root / "Jigsaw").mkdir()
    with pytest.raises(BadDataset, match=r"no file .*Jigsaw/val-\*\.parquet; expected"):
        Blink().read(root, "val")
    (root / "Jigsaw" / FILE).write_bytes(b"PAR1 and nothing else")
    with pytest.raises(BadDataset, match=r"Jigsaw/.* can't be read: ") as caught:
        Blink().read(root, "val")
    assert "\n" not in str(caught.value)
    pq.write_table(pa.table({"idx": ["1"], "question": ["what?"]}), root / "Jigsaw" / FILE)
    with pytest.raises(BadDataset, match="has no column 'choices'"):
        Blink().read(root, "val")
