"""What a job is: a frozen specification, whose id is the hash of its canonical JSON.

In the specification is what decides the number; what does not (device, host, the name that a person typed) travels
beside it as provenance. A field equal to its default is left out of the JSON, so a new field changes no old id;
changing what a default means bumps the `version` of the file that reads it. Golden ids stand in `tests/test_jobs.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, ClassVar

ID_LENGTH = 32


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """The first 32 hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:ID_LENGTH]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A checkpoint by content, and how it is departed from: `random:SEED`, `random-decoder:SEED` or `blank`.

    The checkpoint's hash covers weights, configuration, processor settings, tokenizer and chat template, so none of
    these is repeated here.
    """

    checkpoint: str
    family: str
    family_version: int
    variant: str = ""


@dataclass(frozen=True, kw_only=True)
class CaptureSpec:
    """What decides the bytes of a tensor, but for the site. `selection` is the hash of the image list when not all."""

    model: ModelSpec
    dataset: str
    view: str = "base"
    square: int | None = None
    prefix: str = ""
    dtype: str | None = None
    quantisation: str | None = None
    attention: str = "sdpa"
    block: int = 8
    interventions: tuple[str, ...] = ()
    selection: str = ""

    @property
    def id(self) -> str:
        return digest(to_json(self))


@dataclass(frozen=True, kw_only=True)
class Extract:
    """Keep the tokens of every image at the chosen layers and parts."""

    kind: ClassVar[str] = "extract"
    capture: CaptureSpec
    layers: tuple[int, ...] | None = None
    parts: tuple[str, ...] = ("key", "value")
    seed: int = 0
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score every sample at every chosen layer, head and part, and at the reference sites (tower and projector)."""

    kind: ClassVar[str] = "score"
    capture: CaptureSpec
    task: str
    task_version: int
    parameters: tuple[tuple[str, Any], ...] = ()
    layers: tuple[int, ...] | None = None
    parts: tuple[str, ...] = ("key", "key_unrotated", "value")
    seed: int = 0
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Ask every question, with options and images in the dataset's order and, as controls, in another (`swaps`).

    With `task`, its reading is scored on the tokens of the very prefill that answers (of the first variant). `tokens`
    is the most that are written in answer, `asking_version` that of `vkvdb/asking.py`; a block is of questions.
    """

    kind: ClassVar[str] = "ask"
    capture: CaptureSpec
    asking_version: int
    tokens: int = 16
    swaps: bool = True
    task: str = ""
    task_version: int = 0
    parameters: tuple[tuple[str, Any], ...] = ()
    layers: tuple[int, ...] | None = None
    parts: tuple[str, ...] = ("value",)
    seed: int = 0
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """Measure how much the keys of every layer and head vary over images. `calibrating_version`: of that file."""

    kind: ClassVar[str] = "calibrate"
    capture: CaptureSpec
    calibrating_version: int
    layers: tuple[int, ...] | None = None
    parts: tuple[str, ...] = ("key", "key_unrotated")
    seed: int = 0
    limit: int | None = None


Spec = Extract | Score | Ask | Calibrate
KINDS: dict[str, type[Spec]] = {k.kind: k for k in (Extract, Score, Ask, Calibrate)}


def to_json(spec: Any) -> dict[str, Any]:
    """A specification as plain JSON: fields equal to their default left out, `kind` added where it has one."""
    body: dict[str, Any] = {"kind": spec.kind} if hasattr(spec, "kind") else {}
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if field.default is dataclasses.MISSING or value != field.default:
            body[field.name] = to_json(value) if dataclasses.is_dataclass(value) else _plain(value)
    return body


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


def from_json(body: dict[str, Any]) -> Spec:
    """The inverse of `to_json` for a job's specification."""
    fields = {k: _frozen(v) for k, v in body.items() if k not in ("kind", "capture")}
    capture = dict(body["capture"])
    model = ModelSpec(**capture.pop("model"))
    fields["capture"] = CaptureSpec(model=model, **{k: _frozen(v) for k, v in capture.items()})
    return KINDS[body["kind"]](**fields)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


def job_id(spec: Spec) -> str:
    """The id of a job: 32 hex digits, of which people type the first few."""
    return digest(to_json(spec))


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a worker needs or a reader wants to know, and what no number depends on."""

    model: str
    dataset: str
    device: str = "auto"
    device_map: str = ""
    cache_gb: float = 8.0
    root: str = ""
    of: int | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A row of the queue. `edition` counts the times that a finished job was asked for again."""

    spec: Spec
    provenance: Provenance
    edition: int = 0

    @property
    def id(self) -> str:
        return job_id(self.spec)
