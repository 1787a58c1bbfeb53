"""Find a checkpoint, prove what is in it, and give it a content hash; no weights are loaded here.

A model is written NAME[@VARIANT]. NAME is a folder in Hugging Face layout, a hub id (`org/name`, `org/name@revision`),
a model that ships (`toy`), or a family that needs no files (`pixels`). VARIANT is `random:SEED` (the same architecture
with random weights), `random-decoder:SEED` (trained tower and projector under a random decoder) or `blank` (a grey
image in place of every image).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vkvdb import registry
from vkvdb.errors import BadCheckpoint, UnknownName
from vkvdb.jobs import ModelSpec, digest, to_json
from vkvdb.paths import Home
from vkvdb.toyworld import names as shipped_names
from vkvdb.toyworld import weights_dir
from vkvdb.types import Family, LoadOptions, Model, SiteShape

VARIANT = re.compile(r"(random|random-decoder):(\d+)|blank")

# What decides a number, and no more: read-me files and training leftovers do not make another model.
_SETTINGS = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
)
_WEIGHTS = "*.safetensors"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True)
class Checkpoint:
    """A model that was found: its files, its family, and how it departs from them.

    `name` is what charts and tables call it, `reference` what finds it again from anywhere on this host.
    """

    name: str
    reference: str
    path: Path | None
    family: str
    variant: str
    hash: str
    files: dict[str, str]
    config: dict[str, Any]

    @cached_property
    def processor(self) -> dict[str, Any]:
        """The image processor's settings, with what its file leaves to transformers' defaults; empty without files."""
        from vkvdb.models._loading import image_processor_of

        return dict(image_processor_of(self).to_dict()) if self.path else {}

    @property
    def code(self) -> type[Family]:
        """The family's class."""
        loaded: type[Family] = registry.load("models", self.family)
        return loaded

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(
            checkpoint=self.hash, family=self.family, family_version=self.code.version, variant=self.variant
        )

    @property
    def id(self) -> str:
        """The model's id in the store and the catalog."""
        return digest(to_json(self.spec))

    @property
    def seed(self) -> int | None:
        """The seed of a random variant."""
        return int(self.variant.rpartition(":")[2]) if ":" in self.variant else None

    @property
    def dtype(self) -> str:
        """The type that the weights were published in."""
        own = self.config.get("dtype") or self.config.get("torch_dtype") or "float32"
        return str(own)

    def sites(self) -> tuple[SiteShape, ...]:
        return self.code.sites(self.config)


def resolve(name: str, home: Home) -> Checkpoint:
    """Find a model by what a person typed. Raises BadCheckpoint or UnknownName."""
    base, variant = _split(name)
    if base in registry.names("models") and not registry.load("models", base).checkpoint:
        if variant:
            raise BadCheckpoint(name=name, why=f"{base} has no variants", hint=f"type: {base}")
        return Checkpoint(name, name, None, base, "", digest({"family": base}), {}, {})
    path = _folder(base)
    config = _json(path / "config.json", name)
    if not config:
        raise BadCheckpoint(
            name=name, why=f"{path} has no config.json", hint="a folder in Hugging Face layout is expected"
        )
    _refuse_code(name, config)
    family = str(config.get("model_type", ""))
    if family not in registry.names("models"):
        raise UnknownName(
            kind="model family",
            name=family,
            nearest=registry.nearest(family, registry.names("models")),
            known=", ".join(registry.names("models")),
        )
    weights = [] if variant.startswith("random:") else _weights(name, path)
    files = {p.name: _sha256(p, home) for p in [*(path / f for f in _SETTINGS if (path / f).is_file()), *weights]}
    config = _full(path, name)
    tail = f"@{variant}" if variant else ""
    local = Path(base).expanduser().is_dir() and base not in shipped_names()
    short, long = (path.name, str(path)) if local else (base, base)
    _tell_of_changes(long, files, home)
    return Checkpoint(short + tail, long + tail, path, family, variant, digest(files), files, config)


def _split(name: str) -> tuple[str, str]:
    base, at, tail = name.rpartition("@")
    if at and VARIANT.fullmatch(tail):
        return base, tail
    if at and not Path(name).exists() and re.match(r"random|blank", tail):
        raise BadCheckpoint(
            name=name, why=f"no variant '{tail}'", hint="there are: random:SEED, random-decoder:SEED, blank"
        )
    return name, ""


def _folder(base: str) -> Path:
    if base in shipped_names():
        return weights_dir(base)
    path = Path(base).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise BadCheckpoint(
            name=base,
            why="a file lies there",
            hint="a folder in Hugging Face layout is expected (config.json, *.safetensors)",
        )
    # ORG/NAME could be a folder that was mistyped; only what can be a hub id is looked for there.
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", base):
        raise BadCheckpoint(
            name=base,
            why="no such folder, and no hub id (org/name)",
            hint=f"models that ship: {', '.join(shipped_names())}",
        )
    return _from_hub(base)


def _from_hub(base: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = base.partition("@")
    wanted = [*_SETTINGS, _WEIGHTS, "*.index.json"]
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        why = f"not a folder here, and the hub says: {str(error).strip().splitlines()[0]}"
        raise BadCheckpoint(name=base, why=why, hint="give a folder, or check the id") from error


def _json(path: Path, name: str) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadCheckpoint(name=name, why=f"{path} is not JSON ({error})", hint="download it again") from error
    return dict(read)


def _full(path: Path, name: str) -> dict[str, Any]:
    """The configuration, with what config.json leaves to transformers' defaults (LLaVA-1.5's: even its depth)."""
    from transformers import AutoConfig
    from transformers.utils import logging

    # It warns of token ids that a small vocabulary does not have; what is wrong with a checkpoint is said by ourselves.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        read = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        why = f"config.json can't be read ({str(error).strip().splitlines()[0]})"
        raise BadCheckpoint(name=name, why=why, hint="download it again") from error
    return dict(read.to_dict())


def _refuse_code(name: str, config: dict[str, Any]) -> None:
    if "auto_map" in config:
        raise BadCheckpoint(
            name=name,
            why="it brings code of its own (auto_map), which is never run",
            hint="use a conversion to transformers' own classes (most are published with the suffix -hf)",
        )


def _weights(name: str, path: Path) -> list[Path]:
    found = sorted(path.glob(_WEIGHTS))
    if found:
        return found
    pickled = [p.name for pattern in _PICKLED for p in sorted(path.glob(pattern))]
    if pickled:
        raise BadCheckpoint(
            name=name,
            why=f"its weights are pickled ({pickled[0]}), which is never opened",
            hint="use or make a revision with *.safetensors",
        )
    raise BadCheckpoint(
        name=name, why=f"{path} has no *.safetensors", hint=f"or type {name}@random:0 for random weights"
    )


def _sha256(path: Path, home: Home) -> str:
    """The file's SHA-256, remembered by path, size and time of change: a 15 GB checkpoint is read once."""
    status = path.stat()
    key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
    known = _kept(home.hashes)
    if key not in known:
        with path.open("rb") as file:
            known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        _keep(home.hashes, known)
    return str(known[key])


def _tell_of_changes(reference: str, files: dict[str, str], home: Home) -> None:
    """Say once, on stderr, that a checkpoint's files are not those that were last used under this reference."""
    settings = {name: value for name, value in files.items() if name in _SETTINGS}
    weights = {name: value for name, value in files.items() if name not in _SETTINGS}
    # A random variant reads no weights, so it knows nothing of them.
    now = {"settings": digest(settings), **({"weights": digest(weights)} if weights else {})}
    known = _kept(home.revisions)
    before = known.get(reference, {})
    if before == {**before, **now}:
        return
    _keep(home.revisions, {**known, reference: {**before, **now}})
    if changed := [what for what, value in now.items() if before.get(what, value) != value]:
        sys.stderr.write(
            f"model {reference}: its {' and '.join(changed)} changed since it was last used here; "
            "this is a new revision and shares no result with the old\n"
        )


def _kept(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _keep(path: Path, known: dict[str, Any]) -> None:
    private = path.with_suffix(f".{os.getpid()}")
    private.write_text(json.dumps(known, indent=0, sort_keys=True), encoding="utf-8")
    os.replace(private, path)


def variants(checkpoint: Checkpoint) -> list[str]:
    """The controls that stand beside a model's numbers (method.md 2): names to resolve."""
    base = _split(checkpoint.reference)[0]
    if checkpoint.path is None or checkpoint.variant:
        return []
    decoder = any(s.site.stage == "decoder" for s in checkpoint.sites())
    return ["pixels", f"{base}@random:0", f"{base}@blank", *([f"{base}@random-decoder:0"] if decoder else [])]


def load(checkpoint: Checkpoint, options: LoadOptions) -> Model:
    """Load a model that was resolved, as its variant asks."""
    model = checkpoint.code.load(checkpoint, options)
    if checkpoint.variant == "blank":
        from vkvdb.models._blank import Blank

        return Blank(model)
    return model
