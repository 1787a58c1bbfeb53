"""A small dataset in COCO's original layout, sound until a test breaks it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT, IMAGES = 96, 64, 7
BOX = [8, 8, 60, 8, 60, 50, 8, 50]


def name(image: int) -> str:
    return f"{image:012d}.jpg"


def make(root: Path, change: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """Seven images of noise with a cat in each, a dog in one and a crowd of cats; `change` edits the annotations."""
    folder = root / "val2017"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for image in range(1, IMAGES + 1):
        pixels = rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name(image), quality=90)
    # Last image first: the order of the file is not the dataset's.
    content: dict[str, Any] = {
        "images": [
            {"id": n, "file_name": name(n), "width": WIDTH, "height": HEIGHT, "license": 1}
            for n in range(IMAGES, 0, -1)
        ],
        "annotations": [
            {"id": 100 + n, "image_id": n, "category_id": 17, "iscrowd": 0, "segmentation": [BOX]}
            for n in range(1, IMAGES + 1)
        ],
        "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
    }
    # The crowd is the left half of the image, run lengths down the columns: it overlaps the cat.
    half = WIDTH * HEIGHT // 2
    crowd = {"size": [HEIGHT, WIDTH], "counts": [0, half, half]}
    content["annotations"] += [
        {"id": 200, "image_id": 1, "category_id": 17, "iscrowd": 1, "segmentation": crowd},
        {"id": 201, "image_id": 2, "category_id": 18, "iscrowd": 0, "segmentation": [BOX]},
    ]
    if change:
        change(content)
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def truncate(root: Path, image: int) -> Path:
    """Cut an image's file in half."""
    path = root / "val2017" / name(image)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path
