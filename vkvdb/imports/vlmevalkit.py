"""Results of VLMEvalKit: `status.json` of a run, or one benchmark's `..._acc.csv`, `..._score.json` and the like.

Format [C: open-compass/VLMEvalKit, e8e78f0]. A run's folder is WORK_DIR/MODEL/EVAL_ID; `status.json` in it
[`upsert_dataset_status` in vlmeval/smp/status_report.py] has `model_name` and for each dataset its `metrics`, {name:
number}: what its `evaluate` gave, made flat. Beside it stands MODEL_DATASET_acc.csv or MODEL_DATASET_score.json
[run.py; `get_pred_file_path`, `get_intermediate_file_path` and `dump` in vlmeval/smp/file.py; `report_acc` in
vlmeval/dataset/utils/multiple_choice.py], which `evaluate` of the dataset writes: a table with a column a category and
a row a split, all fields quoted, or an object of numbers, which may hold objects; some benchmarks put the judge's name
before the ending. With EVAL_FORMAT=json a table is a JSON list of rows.

A table is made flat as VLMEvalKit does it, so that a number has the same name from either file: a column without any
number tells rows apart (`split=dev|Overall`); `split=none`, which is what it writes where a benchmark has no splits, is
left out. No file says of how many items a number is, so n is not known. Shares stay shares and percents percents.

MODEL_DATASET can be cut in two only where the folders around the file name the model, or where `benchmark` does.
Spreadsheets (predictions, and some judges' tables) are not read: they are no format of this project's dependencies.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vkvdb.errors import BadImport
from vkvdb.imports._numbers import Number, as_number, flat, json_of, text_of, unique

EXPECTED = "status.json, or a file like MODEL_DATASET_acc.csv or MODEL_DATASET_score.json of a VLMEvalKit run"
_ENDINGS = ("_acc", "_score", "_fine", "_metrics", "_rating")
_NO_SPLIT = "split=none"


def read(path: Path, benchmark: str | None = None) -> list[Number]:
    """The numbers of a file; `benchmark` says which of a run's, or what the file's name ends with. Raises BadImport."""
    if path.suffix not in (".json", ".csv"):
        why = "spreadsheets are not read here" if path.suffix in (".xlsx", ".xls") else "it is no result file"
        raise BadImport(path=path, why=why, expected=EXPECTED)
    if path.suffix == ".csv":
        return _named(path, benchmark, _table(path, _rows(path)))
    body = json_of(path, EXPECTED)
    if isinstance(body, dict) and "datasets" in body and "model_name" in body:
        return list(_status(path, body, benchmark))
    if isinstance(body, list) and body and all(isinstance(row, dict) for row in body):
        return _named(path, benchmark, _table(path, body))
    if not isinstance(body, dict):
        raise BadImport(path=path, why="it is neither an object of numbers nor a list of rows", expected=EXPECTED)
    return _named(path, benchmark, flat(body))


def _status(path: Path, body: Mapping[str, Any], benchmark: str | None) -> Iterator[Number]:
    model, datasets = body["model_name"], body["datasets"]
    if not isinstance(model, str) or not model or not isinstance(datasets, dict):
        raise BadImport(path=path, why="it has no model_name and datasets of a run", expected=EXPECTED)
    if benchmark is not None and benchmark not in datasets:
        raise BadImport(path=path, why=f"its datasets are {', '.join(datasets)}", expected=f"one called {benchmark}")
    for name, found in datasets.items():
        if not isinstance(found, dict) or not isinstance(found.get("metrics", {}), dict):
            raise BadImport(path=path, why=f"dataset {name} has no metrics of a run", expected=EXPECTED)
        if benchmark in (None, name):
            for metric, value in _shortened(flat(found.get("metrics", {}))):
                yield Number(model, name, metric, value)


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        reader = csv.DictReader(io.StringIO(text_of(path), newline=""), strict=True)
        rows = list(reader)
        header = reader.fieldnames or []
    except csv.Error as error:
        raise BadImport(path=path, why=f"it is no CSV ({error})", expected=EXPECTED) from error
    if len(set(header)) < len(header):
        raise BadImport(path=path, why="two of its columns have one name", expected=EXPECTED)
    if any(None in row or None in row.values() for row in rows):
        raise BadImport(path=path, why="its rows are not all as long as its header", expected=EXPECTED)
    return rows


def _table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    """(name, number) of a table: columns with numbers are metrics, those without tell the rows apart."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    numeric = [c for c in columns if any(as_number(row.get(c)) is not None for row in rows)]
    if not numeric:
        raise BadImport(path=path, why="it has no column of numbers", expected=EXPECTED)
    for row in rows:
        told = [f"{c}={str(row[c]).strip()}" for c in columns if c not in numeric and str(row.get(c) or "").strip()]
        for column in numeric:
            value = as_number(row.get(column))
            if value is not None:
                yield "|".join([*told, str(column).strip() or "value"]), value


def _shortened(names: Iterator[tuple[str, float]]) -> Iterator[tuple[str, float]]:
    return unique(("|".join(p for p in name.split("|") if p != _NO_SPLIT) or name, value) for name, value in names)


def _named(path: Path, benchmark: str | None, numbers: Iterator[tuple[str, float]]) -> list[Number]:
    model, name = _cut(path, benchmark)
    return [Number(model, name, metric, value) for metric, value in _shortened(numbers)]


def _cut(path: Path, benchmark: str | None) -> tuple[str, str]:
    """Model and benchmark of MODEL_DATASET_ENDING. Raises BadImport where it can't be told which is which."""
    stem = path.stem
    ending = next((e for e in _ENDINGS if stem.endswith(e)), "")
    stem = stem.removesuffix(ending)
    if benchmark is not None:
        model, found, _ = stem.partition(f"_{benchmark}")
        if not found or not model:
            raise BadImport(path=path, why=f"its name has no _{benchmark}", expected="MODEL_DATASET in its name")
        return model, benchmark
    around = [folder.name for folder in path.resolve().parents if folder.name]
    model = next((name for name in around if stem.startswith(f"{name}_") and len(stem) > len(name) + 1), "")
    if not model:
        why = "its name does not say where the model's ends, and no folder around it is called like the model"
        raise BadImport(path=path, why=why, expected="the benchmark's name: add --benchmark NAME")
    return model, stem.removeprefix(f"{model}_")


IMPORT = read
