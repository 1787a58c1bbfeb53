"""Ingesting: what is published, what is refused, what a second time costs."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coco_tree
import pytest

from vkvdb import inspection
from vkvdb.errors import BadDataset, BadOption, StoreFailed, UnknownName, UnsoundDataset
from vkvdb.extraction import dataset_root
from vkvdb.ingestion import ingest, known
from vkvdb.paths import Home
from vkvdb.store import Store
from vkvdb_cli.main import main


@pytest.fixture
def store(home: Home) -> Store:
    return Store(home.store)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were decoded."""
    names: list[str] = []
    decode = inspection.decode

    def noting(data: bytes, path: Path) -> Any:
        names.append(path.name)
        return decode(data, path)

    monkeypatch.setattr(inspection, "decode", noting)
    return names


def files(folder: Path) -> dict[str, int]:
    """{path: time of change} of all that lies under a folder."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_what_is_published(home: Home, store: Store, tmp_path: Path) -> None:
    root = coco_tree.make(tmp_path / "coco")
    before = files(root)
    done = ingest("coco-val", root, home, store)
    assert done.new
    manifest = store.dataset_named("coco-val")
    assert manifest == done.manifest
    assert (manifest["adapter"], manifest["split"], manifest["root"]) == ("coco", "val", str(root))
    assert (manifest["images"], manifest["samples"], manifest["problems"]) == (14, {"image_pair": 7, "episode": 7}, [])
    rows = store.images(manifest["hash"])
    assert [row.image for row in rows] == list(range(14))
    assert [row.name for row in rows[:7]] == [coco_tree.name(n) for n in range(1, 8)]
    assert rows[7].path == rows[0].path
    assert rows[7].recipe
    assert (rows[0].width, rows[0].height) == (coco_tree.WIDTH, coco_tree.HEIGHT)
    assert rows[0].bytes == (root / rows[0].path).stat().st_size
    assert files(root) == before
    assert dataset_root(home, store, manifest) == root


def test_again_reads_no_image_and_writes_no_byte(home: Home, store: Store, tmp_path: Path, decoded: list[str]) -> None:
    root = coco_tree.make(tmp_path / "coco")
    first = ingest("coco-val", root, home, store)
    assert sorted(decoded) == [coco_tree.name(n) for n in range(1, 8)]  # each once
    decoded.clear()
    before = files(home.root)
    second = ingest("coco-val", root, home, store)
    assert (second.new, second.manifest) == (False, first.manifest)
    after = files(home.root)
    after["roots.lock"] = before["roots.lock"]  # opened to be locked; it is empty
    assert (after, decoded) == (before, [])


def test_the_hash_is_that_of_the_content(home: Home, store: Store, tmp_path: Path) -> None:
    first = ingest("coco-val", coco_tree.make(tmp_path / "a"), home, store)
    moved = ingest("coco-val", coco_tree.make(tmp_path / "b"), home, store)
    assert (moved.new, moved.manifest["hash"]) == (False, first.manifest["hash"])
    assert dataset_root(home, store, first.manifest) == tmp_path / "b"

    def rename(content: dict[str, Any]) -> None:
        content["categories"][0]["name"] = "kitten"

    other = ingest("coco-val", coco_tree.make(tmp_path / "c", rename), home, store)
    assert other.new
    assert other.manifest["hash"] != first.manifest["hash"]


def test_an_interrupted_ingest_goes_on_where_it_was(
    home: Home, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = coco_tree.make(tmp_path / "coco")
    decode = inspection.decode
    names: list[str] = []

    def interrupted(data: bytes, path: Path) -> Any:
        if len(names) == 3:
            raise KeyboardInterrupt
        names.append(path.name)
        return decode(data, path)

    with monkeypatch.context() as patch:
        patch.setattr(inspection, "decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ingest("coco-val", root, home, store, workers=1)
    assert list(store.datasets()) == []
    # A process that was killed while it wrote leaves half a line.
    cache = home.root / "ingest" / "coco-val.jsonl"
    with cache.open("a") as file:
        file.write('["half')
    names.clear()
    monkeypatch.setattr(inspection, "decode", lambda data, path: names.append(path.name) or decode(data, path))
    assert ingest("coco-val", root, home, store, workers=1).new
    assert len(names) == 4
    names.clear()
    assert not ingest("coco-val", root, home, store).new
    assert names == []


def test_a_changed_file_is_read_again(home: Home, store: Store, tmp_path: Path, decoded: list[str]) -> None:
    root = coco_tree.make(tmp_path / "coco")
    first = ingest("coco-val", root, home, store)
    shutil.copy(root / "val2017" / coco_tree.name(1), root / "val2017" / coco_tree.name(2))
    decoded.clear()
    second = ingest("coco-val", root, home, store)
    assert decoded == [coco_tree.name(2)]
    assert second.new
    assert second.manifest["hash"] != first.manifest["hash"]


def missing_image(root: Path) -> None:
    (root / "val2017" / coco_tree.name(3)).unlink()


def truncated_image(root: Path) -> None:
    coco_tree.truncate(root, 3)


def folder_for_image(root: Path) -> None:
    missing_image(root)
    (root / "val2017" / coco_tree.name(3)).mkdir()


def wrong_size(root: Path) -> None:
    shutil.copy(root / "val2017" / coco_tree.name(3), root / "original.jpg")
    from PIL import Image

    with Image.open(root / "original.jpg") as image:
        image.resize((50, 50)).save(root / "val2017" / coco_tree.name(3))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (missing_image, "there is no such file"),
        (truncated_image, "truncated"),
        (folder_for_image, "directory"),
        (wrong_size, "it is 50 x 50, its annotations are for 96 x 64"),
    ],
)
def test_a_bad_image_is_one_line_and_changes_nothing(
    home: Home, store: Store, tmp_path: Path, spoil: Callable[[Path], None], why: str
) -> None:
    root = coco_tree.make(tmp_path / "coco")
    spoil(root)
    with pytest.raises(UnsoundDataset, match=why) as caught:
        ingest("coco-val", root, home, store)
    message = str(caught.value)
    assert coco_tree.name(3) in message
    assert "--skip-bad" in message
    assert "\n" not in message
    assert not store.root.exists()
    assert not home.roots.exists()

    done = ingest("coco-val", root, home, store, skip_bad=True)
    names = [row.name for row in store.images(done.manifest["hash"])]
    assert len(names) == 12
    assert not any(name.startswith(coco_tree.name(3)) for name in names)
    assert [row.image for row in store.images(done.manifest["hash"])] == list(range(12))
    assert [problem["where"] for problem in done.manifest["problems"]] == [f"val2017/{coco_tree.name(3)}"]
    # Its own pair is left out, and every episode that it is in.
    assert done.manifest["samples"]["image_pair"] == 6
    assert done.manifest["left_out"]["episode"] == 7 - done.manifest["samples"].get("episode", 0)


def test_several_problems_are_counted(home: Home, store: Store, tmp_path: Path) -> None:
    root = coco_tree.make(tmp_path / "coco")
    coco_tree.truncate(root, 2)
    coco_tree.truncate(root, 3)
    with pytest.raises(UnsoundDataset, match=r"\(and 1 more\)"):
        ingest("coco-val", root, home, store)


def test_no_sound_image_at_all(home: Home, store: Store, tmp_path: Path) -> None:
    root = coco_tree.make(tmp_path / "coco")
    for n in range(1, 8):
        coco_tree.truncate(root, n)
    with pytest.raises(BadDataset, match="no image of coco-val is sound"):
        ingest("coco-val", root, home, store, skip_bad=True)
    assert not store.root.exists()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("coko-val", "coco-val"), ("coco-vall", "coco-val"), ("coco", "coco-"), ("nothing", "there are: .*coco-val")],
)
def test_unknown_names_suggest_the_nearest(home: Home, store: Store, name: str, nearest: str) -> None:
    with pytest.raises(UnknownName, match=nearest):
        ingest(name, Path(), home, store)


def test_known_datasets() -> None:
    assert {"coco-val", "coco-train", "toyworld-test"} <= known().keys()
    assert all(known().values())


def test_roots_that_are_not_there(home: Home, store: Store, tmp_path: Path) -> None:
    with pytest.raises(BadOption, match=r"--root is missing.*annotations_trainval2017\.zip"):
        ingest("coco-val", None, home, store)
    with pytest.raises(BadDataset, match="there is no folder"):
        ingest("coco-val", tmp_path / "nowhere", home, store)
    (tmp_path / "file").touch()
    with pytest.raises(BadDataset, match="is a file, where a folder is needed"):
        ingest("coco-val", tmp_path / "file", home, store)
    with pytest.raises(BadOption, match="is made, not read"):
        ingest("toyworld-demo", tmp_path, home, store)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_store_that_cannot_be_written_is_one_line(
    home: Home, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    root = coco_tree.make(tmp_path / "coco")

    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        with pytest.raises(StoreFailed, match=os.strerror(number)):
            ingest("coco-val", root, home, store)
    assert not store.root.exists()
    assert not home.roots.exists()
    assert ingest("coco-val", root, home, store).new


def test_the_commands(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = coco_tree.make(tmp_path / "coco")
    coco_tree.truncate(root, 3)
    assert main(["ingest", "coco-val", "--root", str(root)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "truncated" in error
    assert main(["datasets", "show", "coco-val"]) == 1
    assert "vkvdb ingest coco-val --root DIR" in capsys.readouterr().err
    assert main(["ingest", "coco-val", "--root", str(root), "--skip-bad"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("ingested")
    assert "--problems" in out
    assert main(["ingest", "coco-val", "--root", str(root), "--skip-bad"]) == 0
    assert capsys.readouterr().out.startswith("already ingested")
    assert main(["datasets", "show", "coco-val", "--problems"]) == 0
    assert f"val2017/{coco_tree.name(3)}: " in capsys.readouterr().out
    assert main(["datasets", "show", "coco-val"]) == 0
    out = capsys.readouterr().out
    assert str(root) in out
    assert "left out, on images with problems: episode" in out
    assert main(["datasets", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("coco-val") and str(root) in line for line in lines)
    assert any(line.startswith("toyworld-test") and " no " in line for line in lines)
    shutil.move(root, tmp_path / "elsewhere")
    assert main(["datasets", "list"]) == 0
    assert "is gone" in capsys.readouterr().out
    assert main(["datasets", "show", "cocoo"]) == 1
    assert "did you mean" in capsys.readouterr().err


def test_roots_are_kept_beside_each_other(home: Home, store: Store, tmp_path: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        content["categories"][0]["name"] = "kitten"

    for name, change in (("a", None), ("b", rename)):
        ingest("coco-val", coco_tree.make(tmp_path / name, change), home, store)
    roots = json.loads(home.roots.read_text())
    assert sorted(roots.values()) == [str(tmp_path / "a"), str(tmp_path / "b")]
