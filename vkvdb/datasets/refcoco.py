"""RefCOCO, RefCOCO+ and RefCOCOg: phrases that refer to one object of a photograph of COCO.

Origin: Kazemzadeh et al. 2014, *ReferItGame* (EMNLP 2014); Yu et al. 2016, *Modeling Context in Referring Expressions*
(ECCV 2016, arXiv 1608.00272), for RefCOCO and RefCOCO+; Mao et al. 2016 (CVPR 2016, arXiv 1511.02283) for RefCOCOg,
whose split by UMD is Nagaraja et al.'s (ECCV 2016). To be had at https://github.com/lichengunc/refer (`refcoco.zip`,
`refcoco+.zip`, `refcocog.zip`), Apache-2.0; the photographs are `train2014.zip` of https://cocodataset.org/#download.

A split is PARTITION-SET for RefCOCO (`unc-val`, `google-test`), plus-SET for RefCOCO+ (`plus-testA`) and
g-PARTITION-SET for RefCOCOg (`g-umd-test`): `refcoco-unc-testB` is the dataset that Liu et al. 2025 score.

- An `Expression` is one sentence (`sent`, the cleaned one) of one reference [C: refer counts sentences]. The group is
  the split: cIoU and mIoU are taken over all sentences, not over categories [C].
- `others` are the other objects of the image, those of the target's category first, then by annotation id; crowds are
  none [D]. Where one of an image's objects is unsound, none of its expressions is kept: they would lack a wrong answer.
- `refs(PARTITION).p` is a pickle. It is not unpickled: `_pickled.py` reads plain data out of its opcodes and refuses
  everything else. `refs(PARTITION).json`, a list of the same records, is read where there is no pickle.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, ClassVar

from vkvdb.datasets._coco import ANNOTATION, CATEGORY, IMAGE, Entries, region, unique
from vkvdb.datasets._layout import lacks, need_file, need_folder, read_json
from vkvdb.datasets._pickled import plain_data
from vkvdb.errors import BadDataset
from vkvdb.samples import Expression, Labelled, Mask
from vkvdb.types import ImageFile, Problem, Reading

_SETS = {
    ("refcoco", "unc"): ("val", "testA", "testB", "train"),
    ("refcoco", "google"): ("val", "test", "train"),
    ("refcoco+", "unc"): ("val", "testA", "testB", "train"),
    ("refcocog", "umd"): ("val", "test", "train"),
    ("refcocog", "google"): ("val", "train"),
}
_PREFIX = {
    ("refcoco", "unc"): "unc",
    ("refcoco", "google"): "google",
    ("refcoco+", "unc"): "plus",
    ("refcocog", "umd"): "g-umd",
    ("refcocog", "google"): "g-google",
}
_SPLITS = {f"{_PREFIX[source]}-{each}": (*source, each) for source, sets in _SETS.items() for each in sets}
_REF = {"ref_id": int, "ann_id": int, "image_id": int, "split": str, "sentences": list}
_SENTENCE = {"sent_id": int, "sent": str}
_PHOTOGRAPHS = ("train2014", "images/train2014", "images/mscoco/images/train2014")


class RefCoco:
    """The adapter."""

    version: ClassVar[int] = 1
    splits: ClassVar[tuple[str, ...]] = tuple(_SPLITS)
    layout: ClassVar[str] = (
        "refcoco/ (refcoco+/, refcocog/) with refs(unc).p (refs(google).p, refs(umd).p, or .json) and instances.json, "
        "of https://github.com/lichengunc/refer, beside train2014/ of https://cocodataset.org/#download (or that in "
        "images/ or images/mscoco/images/)"
    )

    def read(self, root: Path, split: str) -> Reading:
        folder, partition, part = _SPLITS[split]
        need_folder(root / folder, self.layout)
        photographs = next((place for place in _PHOTOGRAPHS if (root / place).is_dir()), _PHOTOGRAPHS[0])
        need_folder(root / photographs, self.layout)
        refs = _read_refs(root / folder, partition, self.layout)
        keys = {"images": list, "annotations": list, "categories": list}
        content = read_json(root / folder / "instances.json", self.layout, keys)
        reading = Reading()
        images = unique(content["images"], "image", IMAGE, reading.problems)
        categories = unique(content["categories"], "category", CATEGORY, reading.problems)
        annotations = unique(content["annotations"], "annotation", ANNOTATION, reading.problems)

        wanted = _sound(refs, part, images, annotations, reading.problems)
        if not wanted:
            raise BadDataset(what=f"{root / folder} has no sound reference of split '{part}'", expected=self.layout)
        shown = {ref["image_id"] for ref in wanted}
        names = {key: images[key]["file_name"] for key in sorted(shown)}
        reading.images += [ImageFile(name, f"{photographs}/{name}") for name in names.values()]
        objects = _objects(names, images, categories, annotations, reading.problems)
        for ref in wanted:
            masks = objects[ref["image_id"]]
            if masks is not None:
                target = Labelled(names[ref["image_id"]], masks[ref["ann_id"]])
                _add(reading, split, ref, target, _others(masks, ref["ann_id"], annotations))
        return reading


def _read_refs(folder: Path, partition: str, layout: str) -> list[Any]:
    """The references of all splits. Raises BadDataset."""
    file = folder / f"refs({partition}).p"
    if not file.exists() and (folder / f"refs({partition}).json").exists():
        file = file.with_suffix(".json")
    try:
        data = need_file(file, layout).read_bytes()
        refs = plain_data(data) if file.suffix == ".p" else json.loads(data)
    except OSError as error:
        raise BadDataset(what=f"{file} can't be read: {error.strerror}", expected=layout) from error
    except ValueError as error:
        what = "pickle of references" if file.suffix == ".p" else "JSON"
        raise BadDataset(what=f"{file} is no {what}: {error}", expected=layout) from error
    if not isinstance(refs, list):
        raise BadDataset(what=f"{file} is no list of references", expected=layout)
    return refs


def _sound(
    refs: list[Any], part: str, images: Entries, annotations: Entries, problems: list[Problem]
) -> list[dict[str, Any]]:
    """The references of a split that point at an object of an image, the first of each id."""
    found: dict[int, dict[str, Any]] = {}
    for place, ref in enumerate(refs):
        if missing := lacks(ref, _REF):
            problems.append(Problem(f"reference at place {place}", f"it {missing}"))
        elif ref["split"] == part:
            key, image, annotation = ref["ref_id"], ref["image_id"], ref["ann_id"]
            wrong = ""
            if key in found:
                wrong = "its id is there twice"
            elif image not in images:
                wrong = f"there is no image {image}"
            elif annotation not in annotations:
                wrong = f"there is no annotation {annotation}"
            elif annotations[annotation]["image_id"] != image:
                wrong = f"annotation {annotation} is of image {annotations[annotation]['image_id']}, not of {image}"
            elif annotations[annotation]["iscrowd"]:
                wrong = f"annotation {annotation} is a crowd, not one object"
            if wrong:
                problems.append(Problem(f"reference {key}", wrong))
            else:
                found[key] = ref
    return list(found.values())


def _objects(
    names: dict[int, str], images: Entries, categories: Entries, annotations: Entries, problems: list[Problem]
) -> dict[int, dict[int, Mask] | None]:
    """{image: {annotation: its mask}} of the images that are wanted; None where one of an image's is unsound."""
    found: dict[int, dict[int, Mask] | None] = {image: {} for image in names}
    by_image: dict[int, list[int]] = defaultdict(list)
    for key in sorted(annotations):
        by_image[annotations[key]["image_id"]].append(key)
        if annotations[key]["image_id"] not in images:
            problems.append(Problem(f"annotation {key}", f"there is no image {annotations[key]['image_id']}"))
    for image, name in names.items():
        size = images[image]["width"], images[image]["height"]
        masks: dict[int, Mask] = {}
        sound = True
        for key in by_image[image]:
            annotation = annotations[key]
            try:
                if annotation["category_id"] not in categories:
                    wrong = f"there is no category {annotation['category_id']}"
                    problems.append(Problem(f"annotation {key} of {name}", wrong))
                    sound = False
                elif not annotation["iscrowd"]:
                    masks[key] = region(annotation.get("segmentation"), *size)
            except ValueError as error:
                problems.append(Problem(f"annotation {key} of {name}", str(error)))
                sound = False
        found[image] = masks if sound else None
    return found


def _others(objects: dict[int, Mask], target: int, annotations: Entries) -> tuple[Mask, ...]:
    """The masks of an image's objects but the target, those of its category first."""
    category = annotations[target]["category_id"]
    order = sorted(objects.keys() - {target}, key=lambda key: (annotations[key]["category_id"] != category, key))
    return tuple(objects[key] for key in order)


def _add(reading: Reading, split: str, ref: dict[str, Any], target: Labelled, others: tuple[Mask, ...]) -> None:
    """The expressions of a reference."""
    for place, sentence in enumerate(ref["sentences"]):
        where = f"sentence {place} of reference {ref['ref_id']}"
        if missing := lacks(sentence, _SENTENCE):
            reading.problems.append(Problem(where, f"it {missing}"))
        elif not sentence["sent"].strip():
            reading.problems.append(Problem(where, "it has no words"))
        else:
            reading.samples.append(
                Expression(
                    id=f"{ref['ref_id']}/{sentence['sent_id']}",
                    group=split,
                    cluster=target.image,
                    image=target.image,
                    text=sentence["sent"],
                    mask=target.mask,
                    others=others,
                )
            )


DATASET = RefCoco
