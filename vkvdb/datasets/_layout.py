"""What adapters say when a dataset is not laid out as published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vkvdb.errors import BadDataset


def need_folder(path: Path, layout: str) -> Path:
    """A folder that must be there. Raises BadDataset with the whole layout."""
    if not path.is_dir():
        what = f"{path} is a file, where a folder is needed" if path.exists() else f"there is no folder {path}"
        raise BadDataset(what=what, expected=layout)
    return path


def need_file(path: Path, layout: str) -> Path:
    """A file that must be there. Raises BadDataset with the whole layout."""
    if not path.is_file():
        what = f"{path} is a folder, where a file is needed" if path.exists() else f"there is no file {path}"
        raise BadDataset(what=what, expected=layout)
    return path


def read_json(path: Path, layout: str, keys: Mapping[str, type]) -> dict[str, Any]:
    """A JSON object that must have these keys, of these types. Raises BadDataset."""
    try:
        body = json.loads(need_file(path, layout).read_bytes())
    except OSError as error:
        raise BadDataset(what=f"{path} can't be read: {error.strerror}", expected=layout) from error
    except ValueError as error:  # no JSON, or no UTF-8
        raise BadDataset(what=f"{path} is no JSON: {error}", expected=layout) from error
    if missing := lacks(body, keys):
        raise BadDataset(what=f"{path} {missing}", expected=layout)
    return dict(body)


def lacks(entry: Any, keys: Mapping[str, type]) -> str:
    """`has no 'width'` for an entry that is no object with these keys of these types; empty where it is."""
    if not isinstance(entry, dict):
        return "is no JSON object"
    wrong = (key for key, kind in keys.items() if not isinstance(entry.get(key), kind))
    return f"has no {keys[key].__name__} '{key}'" if (key := next(wrong, None)) else ""
