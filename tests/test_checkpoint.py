"""Finding checkpoints: names, hashes, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vkvdb.errors import BadCheckpoint, UnknownName
from vkvdb.models._checkpoint import load, resolve, variants
from vkvdb.paths import Home
from vkvdb.types import LoadOptions


@pytest.fixture
def copy(small_onevision: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_onevision, tmp_path / "copy"))


def test_the_hash_is_of_content_not_of_place(small_onevision: Path, copy: Path, home: Home) -> None:
    assert resolve(str(copy), home).id == resolve(str(small_onevision), home).id
    (copy / "README.md").write_text("words")
    assert resolve(str(copy), home).id == resolve(str(small_onevision), home).id
    (copy / "chat_template.jinja").write_text((copy / "chat_template.jinja").read_text() + " ")
    assert resolve(str(copy), home).id != resolve(str(small_onevision), home).id


def test_a_random_twin_does_not_depend_on_weights(copy: Path, home: Home) -> None:
    before = resolve(f"{copy}@random:3", home)
    for file in copy.glob("*.safetensors"):
        file.unlink()
    assert resolve(f"{copy}@random:3", home).id == before.id != resolve(f"{copy}@random:4", home).id
    with pytest.raises(BadCheckpoint, match=r"has no \*\.safetensors; or type .*@random:0"):
        resolve(str(copy), home)


def test_pickled_weights_are_refused(copy: Path, home: Home) -> None:
    for file in copy.glob("*.safetensors"):
        file.rename(file.with_name("pytorch_model.bin"))
    with pytest.raises(BadCheckpoint, match="pickled"):
        resolve(str(copy), home)


def test_code_of_its_own_is_refused(copy: Path, home: Home) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(BadCheckpoint, match="never run"):
        resolve(str(copy), home)


def test_missing_weights_are_an_error_not_random_numbers(copy: Path, home: Home) -> None:
    from safetensors.torch import load_file, save_file

    file = copy / "model.safetensors"
    weights = load_file(file)
    del weights[next(k for k in weights if "k_proj" in k)]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(BadCheckpoint, match="weights are missing"):
        load(resolve(str(copy), home), LoadOptions())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no-such-folder", "no such folder, and no hub id"),
        ("/no/such/folder", "no such folder"),
        ("nobody/nothing-here", "the hub says"),
    ],
)
def test_what_is_not_there(name: str, says: str, home: Home) -> None:
    with pytest.raises(BadCheckpoint, match=says) as caught:
        resolve(name, home)
    assert "\n" not in str(caught.value)


def test_a_file_is_not_a_folder(tmp_path: Path, home: Home) -> None:
    file = tmp_path / "weights"
    file.write_text("")
    with pytest.raises(BadCheckpoint, match="a file lies there"):
        resolve(str(file), home)


def test_an_unknown_architecture_names_those_that_are_known(copy: Path, home: Home) -> None:
    (copy / "config.json").write_text(json.dumps({"model_type": "llava_twovision"}))
    with pytest.raises(UnknownName, match="did you mean 'llava_onevision'"):
        resolve(str(copy), home)


def test_files_that_changed_are_a_new_revision_said_once(
    copy: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    before = resolve(str(copy), home)
    assert resolve(f"{copy}@random:0", home).hash != before.hash  # a variant reads fewer files: no revision
    (copy / "README.md").write_text("words")
    resolve(str(copy), home)
    assert capsys.readouterr().err == ""
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert resolve(str(copy), home).id != before.id
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"model {copy}: its settings changed")
    assert "new revision" in line
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    resolve(f"{copy}@random:0", home)  # reads no weights, so it does not know
    assert capsys.readouterr().err == ""
    resolve(str(copy), home)
    resolve(str(copy), home)
    assert capsys.readouterr().err.count("its weights changed") == 1


def test_an_unknown_variant(small_onevision: Path, home: Home) -> None:
    with pytest.raises(BadCheckpoint, match="random:SEED, random-decoder:SEED, blank"):
        resolve(f"{small_onevision}@random", home)


def test_controls_of_a_model(small_onevision: Path, tiny_dinov2: Path, home: Home) -> None:
    own = variants(resolve(str(small_onevision), home))
    assert own == ["pixels", *(f"{small_onevision}@{v}" for v in ("random:0", "blank", "random-decoder:0"))]
    assert variants(resolve(str(tiny_dinov2), home)) == ["pixels", f"{tiny_dinov2}@random:0", f"{tiny_dinov2}@blank"]
    assert variants(resolve("pixels", home)) == []
