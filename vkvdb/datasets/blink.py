"""BLINK: 14 kinds of multiple-choice questions about one to four images; which of them image values answer.

Origin: Fu et al. 2024, *BLINK: Multimodal Large Language Models Can See but Not Perceive* (ECCV 2024, arXiv
2404.12390). Apache-2.0; the images stay with the datasets that they are of. To be had at
https://huggingface.co/datasets/BLINK-Benchmark/BLINK: a folder for each subtask with `val-00000-of-00001.parquet`. The
answers of its test split are withheld, so only `val` is read. A subtask's folder may be left away; it then has no
samples, and the dataset another hash.

The images are cells of the parquet files and are read there (`_parquet.py`), not copied. `Question.text` is the
question without its choices (`prompt` holds both), `options` are the choices in their order, and `answer` is the choice
that the letter stands for; the group is the subtask. Questions are taken to be independent of one another: which of
them were made of one photograph, the files do not say [D]. Marks are drawn into the images and told nowhere: those of
the three correspondence subtasks are looked for (`vkvdb.marks`; REF, then the options' points), and where one is not
found for certain `marks` is empty, and the question has no reading. Its accuracy on BLINK itself is not known [D].
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, ClassVar

from vkvdb.datasets import _parquet
from vkvdb.datasets._layout import need_folder
from vkvdb.errors import BadDataset
from vkvdb.samples import Point, Question
from vkvdb.types import ImageFile, Problem, Reading

SUBTASKS = (
    "Art_Style",
    "Counting",
    "Forensic_Detection",
    "Functional_Correspondence",
    "IQ_Test",
    "Jigsaw",
    "Multi-view_Reasoning",
    "Object_Localization",
    "Relative_Depth",
    "Relative_Reflectance",
    "Semantic_Correspondence",
    "Spatial_Relation",
    "Visual_Correspondence",
    "Visual_Similarity",
)
LETTERS = ("(A)", "(B)", "(C)", "(D)")
_IMAGES = ("image_1", "image_2", "image_3", "image_4")
_COLUMNS = ("idx", "question", "choices", "answer")


class Blink:
    """The adapter. Explanations and the other columns are not needed."""

    version: ClassVar[int] = 1
    splits: ClassVar[tuple[str, ...]] = ("val",)
    layout: ClassVar[str] = (
        "a folder for each subtask (Art_Style/, Counting/, ...) with SPLIT-00000-of-00001.parquet, as in "
        "https://huggingface.co/datasets/BLINK-Benchmark/BLINK"
    )

    def read(self, root: Path, split: str) -> Reading:
        layout = self.layout.replace("SPLIT", split)
        need_folder(root, layout)
        reading = Reading()
        seen: set[str] = set()
        there = [subtask for subtask in SUBTASKS if (root / subtask).is_dir()]
        if not there:
            raise BadDataset(what=f"{root} has no folder of a subtask", expected=layout)
        for subtask in there:
            files = sorted((root / subtask).glob(f"{split}-*-of-*.parquet"))
            if not files:
                raise BadDataset(what=f"there is no file {root / subtask}/{split}-*.parquet", expected=layout)
            for file in files:
                path = f"{subtask}/{file.name}"
                for number, row in enumerate(_rows(file, layout)):
                    key = row["idx"]
                    if not isinstance(key, str) or not key:
                        reading.problems.append(Problem(f"row {number} of {path}", "it has no idx"))
                    elif key in seen:
                        reading.problems.append(Problem(f"{key}, row {number} of {path}", "its id is there twice"))
                    else:
                        seen.add(key)
                        _add(reading, subtask, f"{path}/{number}", row, root)
        return reading


def _rows(file: Path, layout: str) -> list[dict[str, Any]]:
    """The rows of a file, without the images' bytes: of each image its place, or None. Raises BadDataset."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if missing := [name for name in (*_COLUMNS, *_IMAGES) if name not in names]:
                raise BadDataset(what=f"{file} has no column '{missing[0]}'", expected=layout)
            rows: list[dict[str, Any]] = table.read(columns=list(_COLUMNS)).to_pylist()
            for image in _IMAGES:
                # A group at a time: the bytes of a subtask's images are too many to hold.
                place = 0
                for group in range(table.num_row_groups):
                    for there in pc.is_valid(table.read_row_group(group, columns=[image]).column(0)).to_pylist():
                        rows[place][image] = there
                        place += 1
    except (pa.ArrowException, OSError) as error:
        raise BadDataset(what=f"{file} can't be read: {str(error).splitlines()[0]}", expected=layout) from error
    return rows


def _add(reading: Reading, subtask: str, path: str, row: dict[str, Any], root: Path) -> None:
    """The question and images of the row that lies at a path, or what is wrong with it."""
    key = row["idx"]
    shown = [image for image in _IMAGES if row[image]]
    if wrong := _wrong_choices(row) or _wrong_images(shown):
        reading.problems.append(Problem(f"{key}, {path}", wrong))
        return
    options = tuple(row["choices"])
    names = [f"{key}/{image}" for image in shown]
    reading.images += [ImageFile(name, f"{path}/{image}") for name, image in zip(names, shown, strict=True)]
    reading.samples.append(
        Question(
            id=key,
            group=subtask,
            cluster=key,
            shown=tuple(names),
            text=row["question"],
            answer=options[LETTERS.index(row["answer"])],
            options=options,
            marks=_marks([root / path / image for image in shown], len(options)) if _marked(subtask, shown) else (),
        )
    )


def _marked(subtask: str, shown: list[str]) -> bool:
    """Whether points are marked in a question's two images."""
    return subtask.endswith("_Correspondence") and len(shown) == 2


def _marks(images: list[Path], options: int) -> tuple[Point, ...]:
    """The reference point on the first image and the options' points on the second; none where any is unreadable."""
    import PIL.Image

    from vkvdb import marks

    found: list[Point] = []
    for path, labels in zip(images, (("REF",), tuple("ABCD")[:options]), strict=True):
        cell = _parquet.cell_of(path)
        assert cell is not None
        try:
            with PIL.Image.open(io.BytesIO(_parquet.read(cell))) as image:
                places = marks.find(image, labels)
        except (OSError, ValueError):
            return ()  # no image: the ingestion, which decodes every one, tells it
        if places is None:
            return ()
        found += [places[label] for label in labels]
    return tuple(found)


def _wrong_choices(row: dict[str, Any]) -> str:
    """What is wrong with a row's question, choices and answer; empty if nothing is."""
    choices, answer = row["choices"], row["answer"]
    if not isinstance(row["question"], str) or not row["question"]:
        return "it has no question"
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        return "it has no choices"
    if not 2 <= len(choices) <= len(LETTERS):
        return f"it has {len(choices)} choices"
    if len(set(choices)) < len(choices):
        return "two of its choices are the same"
    if answer not in LETTERS[: len(choices)]:
        return f"its answer '{answer}' is none of its {len(choices)} choices"
    return ""


def _wrong_images(shown: list[str]) -> str:
    """Where a row has none of its images, or one is missing between them; empty if nothing is wrong."""
    missing = next((image for image in _IMAGES if image not in shown), "")
    return f"it has no {missing}" if not shown or (missing and missing < shown[-1]) else ""


DATASET = Blink
