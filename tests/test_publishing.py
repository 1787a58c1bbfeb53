"""Publishing: whole files or none, whoever fails when."""

from __future__ import annotations

import errno
import itertools
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import fork, job, rows, tree

from vkvdb import publishing
from vkvdb.errors import StoreFailed
from vkvdb.processes import this_process
from vkvdb.store import Store
from vkvdb.verification import problems


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def text(content: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(content, encoding="utf-8")

    return write


def test_published_once_and_for_all(store: Store) -> None:
    final = store.root / "a" / "b" / "fact.txt"
    assert store.publish(final, text("first"))
    assert not store.publish(final, text("second"))
    assert tree(store.root) == {"a": None, "a/b": None, "a/b/fact.txt": b"first"}
    assert final.stat().st_nlink == 1


def test_published_files_are_readable_by_others(store: Store) -> None:
    before = os.umask(0o022)
    try:
        store.publish(store.root / "x", text("x"))
    finally:
        os.umask(before)
    assert (store.root / "x").stat().st_mode & 0o777 == 0o644


def test_nothing_is_seen_before_all_is_written(store: Store) -> None:
    seen: list[list[str]] = []

    def look(path: Path) -> None:
        seen.append([p.name for p in store.root.rglob("*") if p.is_file() and not p.name.startswith(".")])
        path.write_text("x", encoding="utf-8")

    files = {store.root / "one": look, store.root / "two": look}
    assert store.publish_with_manifest(files, store.root / "manifest.json", {"kind": "k"})
    assert seen == [[], []]
    body = store.read_json(store.root / "manifest.json")
    assert body["files"] == {name: publishing.sha256(store.root / name) for name in ("one", "two")}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["mkdir", "open", "fsync", "link", "unlink", "write"])
def test_a_refusal_at_any_step_leaves_no_trace(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    """The first, the second ... call of each kind is refused, until none is left to refuse."""
    store.publish(store.root / "kept" / "before.txt", text("before"))
    before = tree(store.root)
    refused = 0
    for nth in itertools.count():
        calls = itertools.count()

        def failing(real: Callable[..., Any], nth: int = nth, calls: Any = calls) -> Callable[..., Any]:
            def called(*args: Any, **options: Any) -> Any:
                if next(calls) == nth:
                    raise OSError(code, os.strerror(code))
                return real(*args, **options)

            return called

        def write(path: Path) -> None:
            path.write_text("half", encoding="utf-8")
            path.write_text("whole", encoding="utf-8")

        with monkeypatch.context() as patch:
            if call == "write":
                patch.setattr(Path, "write_text", failing(Path.write_text))
            else:
                patch.setattr(os, call, failing(getattr(os, call)))
            folder = store.root / "kept" / "new" / "deeper"
            try:
                assert store.publish_with_manifest({folder / "a": write, folder / "b": write}, folder / "m.json", {})
                break
            except StoreFailed as error:
                said = str(error)
        refused += 1
        assert os.strerror(code) in said
        assert "\n" not in said
        assert tree(store.root) == before
    assert refused >= {"mkdir": 1, "open": 3, "fsync": 5, "link": 3, "unlink": 3, "write": 4}[call]
    assert len(tree(store.root)) == len(before) + 5


def test_a_full_disk_in_the_middle_of_a_table(store: Store) -> None:
    """A real refusal, of Arrow's own writing."""
    store.write_scores(job().id, 0, 0, rows(0), {})
    before = tree(store.root)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(StoreFailed, match=r"can't write .*0001\.parquet: File too large; nothing of this step"):
            store.write_scores(job().id, 0, 1, rows(1, scale=5000), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tree(store.root) == before


def test_an_interrupted_write_leaves_no_trace(store: Store) -> None:
    def write(path: Path) -> None:
        path.write_text("half", encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.publish(store.root / "x" / "y", write)
    assert not store.root.exists()


def test_a_file_where_a_folder_is_needed(store: Store) -> None:
    store.publish(store.root / "scores", text("a file"))
    with pytest.raises(StoreFailed, match="scores is a file, where a folder is needed"):
        store.write_scores(job().id, 0, 0, rows(0), {})
    with pytest.raises(StoreFailed, match="scores is a file, where a folder is needed"):
        store.publish(store.root / "scores" / "x", text("x"))
    (store.root / "models" / "abc.json").mkdir(parents=True)
    with pytest.raises(StoreFailed, match="a folder has this name"):
        store.publish_json(store.model_path("abc"), {"kind": "model"})
    assert sorted(tree(store.root)) == ["models", "models/abc.json", "scores"]


def test_a_file_system_without_hard_links_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StoreFailed, match=r"no hard links.*VKVDB_STORE"):
        store.publish(store.root / "x", text("x"))


def test_of_many_publishers_one_wins(store: Store, tmp_path: Path) -> None:
    def publish(n: int) -> None:
        for name in range(20):
            won = store.publish(store.root / f"{name}" / "fact", text(f"{n} " * 1000))
            if won:
                (tmp_path / f"won-{name}-{n}").touch()

    pids = [fork(lambda n=n: publish(n)) for n in range(6)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 6
    for name in range(20):
        winners = list(tmp_path.glob(f"won-{name}-*"))
        assert len(winners) == 1
        assert (store.root / f"{name}" / "fact").read_text().split()[0] == winners[0].name.rpartition("-")[2]
    assert not list(store.root.rglob(".*"))


def test_what_a_dead_process_left_is_cleared_and_what_a_live_one_writes_is_not(store: Store) -> None:
    final = store.root / "fact"
    store.root.mkdir()
    me = this_process()
    dead = final.with_name(f".fact.{me.signature()}0.00000000.part")  # this id, begun at another time
    alive = final.with_name(f".fact.{me.signature()}.00000000.part")
    dead.touch()
    alive.touch()
    assert list(problems(store)) == [f"{dead} was left by a process that ended; it may be deleted"]
    store.publish(final, text("x"))
    assert sorted(tree(store.root)) == [alive.name, "fact"]


def test_a_data_file_without_its_manifest_is_taken_as_it_is(store: Store) -> None:
    """As if a worker had died between the two names; another library version may write other bytes for equal rows."""
    data = store.root / "scores" / job().id / "0" / "0000.parquet"
    store.publish(data, text("another's bytes"))
    body = store.write_scores(job().id, 0, 0, rows(0), {})
    assert data.read_text() == "another's bytes"
    assert body["sha256"] == publishing.sha256(data)
