"""Whether what an adapter read is sound: every image decoded once and hashed, every sample held against its images."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from vkvdb.errors import BadDataset, BadImage, StoreFailed, UnsoundDataset
from vkvdb.images import decode, file_of, read_bytes
from vkvdb.jobs import canonical
from vkvdb.samples import Sample
from vkvdb.soundness import fault
from vkvdb.store import ImageRow
from vkvdb.types import ImageFile, Problem, Reading

Advance = Callable[[int], None]
Progress = Callable[[str, int | None], AbstractContextManager[Advance]]


class Found(NamedTuple):
    """What decoding told of a file."""

    sha256: str
    bytes: int
    width: int
    height: int


@dataclass
class Checked:
    """The sound images and samples of a dataset, and what was left out."""

    rows: list[ImageRow] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def inspect(
    name: str, root: Path, reading: Reading, *, cache: Path | None, skip_bad: bool, workers: int, progress: Progress
) -> Checked:
    """Everything that can be checked; raises UnsoundDataset, or BadDataset when nothing sound is left."""
    checked = Checked(problems=list(reading.problems))
    images = _sound_images(reading.images, checked.problems)
    files = list(dict.fromkeys(image.path for image in images))
    with progress(f"checking {name}", len(files)) as advance:
        found = _decode_all(root, files, cache, workers, advance)
    for image in images:
        what = found[image.path]
        if image.recipe and isinstance(what, Found) and list(image.recipe["size"]) != [what.width, what.height]:
            width, height = image.recipe["size"]
            found[image.path] = f"it is {what.width} x {what.height}, its annotations are for {width} x {height}"
    checked.problems += [Problem(path, what) for path, what in found.items() if isinstance(what, str)]
    for image in images:
        what = found[image.path]
        if isinstance(what, Found):
            recipe = canonical(dict(image.recipe)) if image.recipe else ""
            number = len(checked.rows)
            row = ImageRow(image=number, name=image.name, path=image.path, recipe=recipe, **what._asdict())
            checked.rows.append(row)
    _keep_sound_samples(reading, checked)
    if checked.problems and not skip_bad:
        first, count = checked.problems[0], len(checked.problems)
        more = f" (and {count - 1} more)" if count > 1 else ""
        raise UnsoundDataset(name=name, where=first.where, what=first.what, more=more)
    if not checked.rows:
        raise BadDataset(what=f"no image of {name} is sound", expected="at least one")
    return checked


def _sound_images(images: Iterable[ImageFile], problems: list[Problem]) -> list[ImageFile]:
    """The images whose name is theirs alone and whose path stays under the root."""
    sound: dict[str, ImageFile] = {}
    for image in images:
        path = PurePosixPath(image.path)
        if image.name in sound:
            problems.append(Problem(image.path, f"two images are called {image.name}"))
        elif path.is_absolute() or ".." in path.parts:
            problems.append(Problem(image.path, "its path leaves the dataset's folder"))
        else:
            sound[image.name] = image
    return list(sound.values())


def _keep_sound_samples(reading: Reading, checked: Checked) -> None:
    """Keep samples without fault; one on an image that was left out is only counted, the image is the problem."""
    sizes = {row.name: (row.width, row.height) for row in checked.rows}
    listed = {image.name for image in reading.images}
    ids: set[str] = set()
    for sample in reading.samples:
        missing = [name for name in sample.images() if name not in sizes]
        unlisted = [name for name in missing if name not in listed]
        if unlisted:
            checked.problems.append(Problem(sample.id, f"there is no image {unlisted[0]}"))
        elif missing:
            checked.left_out[sample.kind] += 1
        elif sample.id in ids:
            checked.problems.append(Problem(sample.id, "its id is there twice"))
        elif wrong := fault(sample, sizes):
            checked.problems.append(Problem(sample.id, wrong))
        else:
            ids.add(sample.id)
            checked.samples.append(sample)


def _decode_all(
    root: Path, files: list[str], cache: Path | None, workers: int, advance: Advance
) -> dict[str, Found | str]:
    """{path: what decoding told, or why it failed}; files that the cache knows unchanged are not read."""
    noted = _read_cache(cache) if cache else {}
    keys = {path: _key(root / path) for path in files}
    found: dict[str, Found | str] = {path: noted[key] for path, key in keys.items() if key in noted}
    advance(len(found))
    todo = [path for path in files if path not in found]
    if not todo:
        return found
    with _appending(cache) as note, ThreadPoolExecutor(workers) as pool:
        try:
            for path, what in zip(todo, pool.map(lambda path: _decode(root / path), todo), strict=True):
                found[path] = what
                if isinstance(what, Found):
                    note(f"{json.dumps([keys[path], *what])}\n")
                advance(1)
        except BaseException:  # Ctrl-C too: what waits is not begun
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {path: found[path] for path in files}


def _decode(path: Path) -> Found | str:
    try:
        data = read_bytes(path)
        image = decode(data, path)
    except BadImage as error:
        return str(error.facts["why"])
    return Found(hashlib.sha256(data).hexdigest(), len(data), *image.size)


def _key(path: Path) -> str:
    """What a file's content is known by as long as it does not change; the path alone where there is no file."""
    try:
        facts = file_of(path).stat()
    except OSError:
        return str(path)  # never noted: decoding will say what is wrong
    return f"{path}:{facts.st_size}:{facts.st_mtime_ns}"


def _read_cache(path: Path) -> dict[str, Found]:
    """What was decoded before; a last line that a killed process left unfinished is not read."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return {key: Found(*facts) for key, *facts in map(json.loads, lines)}


@contextmanager
def _appending(path: Path | None) -> Iterator[Callable[[str], object]]:
    """Lines to the end of a file, each written as it comes; an unfinished one is cut off first."""
    if path is None:
        yield lambda _line: None
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            file.seek(0)
            file.truncate((file.readall() or b"").rfind(b"\n") + 1)
            yield lambda line: file.write(line.encode())
    except OSError as error:
        raise StoreFailed(path=path, why=error.strerror or error) from error
