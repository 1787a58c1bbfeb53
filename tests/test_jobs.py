"""Specifications and their ids."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from vkvdb.jobs import (
    Ask,
    Calibrate,
    CaptureSpec,
    Extract,
    Job,
    ModelSpec,
    Provenance,
    Score,
    Spec,
    from_json,
    job_id,
    to_json,
)

MODEL = ModelSpec(checkpoint="c" * 32, family="llava_onevision", family_version=1)
CAPTURE = CaptureSpec(model=MODEL, dataset="d" * 32)
SCORE = Score(capture=CAPTURE, task="correspondence", task_version=1)
FULL = replace(
    SCORE,
    capture=replace(CAPTURE, prefix="a cat", square=392, dtype="bfloat16", block=4, selection="s"),
    parameters=(("alpha", 0.05), ("readout", "grid")),
    layers=(0, 7),
    parts=("value",),
    seed=3,
    limit=10,
)
ASK = Ask(capture=CAPTURE, asking_version=1)
FULL_ASK = replace(
    ASK,
    tokens=4,
    swaps=False,
    task="choices",
    task_version=1,
    parameters=(("reading", "mean"),),
    layers=(1,),
    parts=("key",),
    seed=2,
    limit=5,
)
CALIBRATE = Calibrate(capture=CAPTURE, calibrating_version=1)
FULL_CALIBRATE = replace(CALIBRATE, layers=(1, 2), parts=("key",), seed=2, limit=8)


@pytest.mark.parametrize(
    ("spec", "golden"),
    [
        (SCORE, "95a907d9ddf0fbe79dd9896d326a8965"),
        (FULL, "d816ebea226b20802b9b5acaab53af56"),
        (Extract(capture=CAPTURE), "4283ab66af39f4f14767158149740df9"),
        (ASK, "70415c278f12f6422006342d5dfee60b"),
        (FULL_ASK, "4dc83113391bae34c2cfbc03df209740"),
        (CALIBRATE, "80f76fbd0db6c1c91f0ae36d624f6472"),
        (FULL_CALIBRATE, "6f906c81a3accbc1b2a9d604a1dcacab"),
    ],
)
def test_ids_never_change(spec: Spec, golden: str) -> None:
    """People cite job ids. If this fails, a default changed or a field was renamed: make that a new version instead."""
    assert job_id(spec) == golden


@pytest.mark.parametrize(
    "spec", [SCORE, FULL, Extract(capture=CAPTURE, parts=("key",), limit=3), FULL_ASK, FULL_CALIBRATE]
)
def test_json_round_trip(spec: Spec) -> None:
    assert from_json(json.loads(json.dumps(to_json(spec)))) == spec


def test_defaults_are_left_out() -> None:
    assert to_json(SCORE) == {
        "kind": "score",
        "capture": {
            "model": {"checkpoint": "c" * 32, "family": "llava_onevision", "family_version": 1},
            "dataset": "d" * 32,
        },
        "task": "correspondence",
        "task_version": 1,
    }


@pytest.mark.parametrize(
    "other",
    [
        replace(SCORE, seed=1),
        replace(SCORE, layers=(0,)),
        replace(SCORE, task_version=2),
        replace(SCORE, capture=replace(CAPTURE, prefix="x")),
        replace(SCORE, capture=replace(CAPTURE, model=replace(MODEL, variant="blank"))),
    ],
)
def test_what_decides_the_number_decides_the_id(other: Score) -> None:
    assert job_id(other) != job_id(SCORE)


def test_provenance_does_not() -> None:
    here, there = (
        Job(spec=SCORE, provenance=Provenance(model=m, dataset="x", device=d)) for m, d in (("a", "cpu"), ("b", "cuda"))
    )
    assert here.id == there.id


def test_more_layers_belong_to_the_same_capture() -> None:
    assert (
        replace(SCORE, layers=(3,)).capture.id
        == SCORE.capture.id
        == Extract(capture=CAPTURE, parts=("key",)).capture.id
    )
    assert replace(CAPTURE, block=4).id != CAPTURE.id
