"""Result files of other tools, shaped as their sources write them, as rows of the catalog."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import synthetic
from fakes import tree

from vkvdb.absorbing import rows_of
from vkvdb.catalog import Catalog
from vkvdb.errors import BadImport, UnknownName
from vkvdb.importing import import_file
from vkvdb.imports import lmms_eval, vlmevalkit
from vkvdb.paths import Home
from vkvdb.schema import number
from vkvdb.store import Store
from vkvdb_cli.main import main

LMMS: dict[str, Any] = {
    "results": {
        "blink": {"alias": "blink", "blink_acc,none": 0.4612, "blink_acc_stderr,none": 0.011},
        "blink_depth": {
            "alias": " - blink_depth",
            "blink_acc,none": 0.5,
            "blink_acc_stderr,none": "N/A",
            "blink_acc_stderr_clt,none": 0.04,
            "blink_acc_stderr_clustered,none": "N/A",
        },
        "mme": {"alias": "mme", "mme_perception_score,none": "1488.25", "mme_perception_score_stderr,none": []},
        "mmmu_val": {"alias": "mmmu_val", "exact_match,flexible-extract": 0.31, "mmmu_acc,none": None},
        "everything": {" ": " ", "alias": "everything"},
    },
    "group_subtasks": {"blink": ["blink_depth"]},
    "configs": {"blink_depth": {"task": "blink_depth", "output_type": "generate_until"}},
    "versions": {"blink_depth": "Yaml"},
    "n-shot": {"blink_depth": 0},
    "n-samples": {
        "blink_depth": {"original": 124, "effective": 124},
        "mme": {"original": 2374, "effective": -1},
        "mmmu_val": {"original": 900, "effective": 0.1},
    },
    "config": {"model": "llava_onevision", "model_args": "pretrained=lmms-lab/llava-onevision-qwen2-7b-ov"},
    "model_source": "llava_onevision",
    "model_name": "lmms-lab/llava-onevision-qwen2-7b-ov",
    "model_name_sanitized": "lmms-lab__llava-onevision-qwen2-7b-ov",
}
NAME = LMMS["model_name"]


def lmms(folder: Path, body: Any = LMMS) -> Path:
    path = folder / "20260806_102223_results.json"
    path.write_text(json.dumps(body, indent=2), encoding="utf-8")
    return path


def table(path: Path, rows: list[dict[str, object]]) -> Path:
    """As pandas does with QUOTE_ALL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def store(home: Home) -> Store:
    return Store(home.store)


def test_lmms_eval_gives_every_metric_and_no_error(tmp_path: Path) -> None:
    found = [(n.model_name, n.benchmark, n.metric, n.value, n.n) for n in lmms_eval.read(lmms(tmp_path))]
    assert found == [
        (NAME, "blink", "blink_acc", 0.4612, None),
        (NAME, "blink_depth", "blink_acc", 0.5, 124),
        (NAME, "mme", "mme_perception_score", 1488.25, 2374),
        (NAME, "mmmu_val", "exact_match,flexible-extract", 0.31, 90),
    ]


def test_lmms_eval_without_a_models_name_says_the_code_that_ran_it(tmp_path: Path) -> None:
    found = lmms_eval.read(lmms(tmp_path, {**LMMS, "model_name": ""}), "blink_depth")
    assert [(n.model_name, n.benchmark) for n in found] == [("llava_onevision", "blink_depth")]


def test_vlmevalkit_status_has_all_benchmarks_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    body = {
        "schema_version": "1.0",
        "model_name": "llava_onevision_qwen2_7b_ov",
        "datasets": {
            "BLINK": {"status": "done", "metrics": {"split=none|Overall": 0.53, "split=none|Jigsaw": 0.6}},
            "OCRBench": {"status": "done", "primary_metric": "Final Score", "metrics": {"Final Score": 622}},
            "MMMU_TEST": {"status": "done", "skip_reason": "official_submission_only_mmmu_test"},
        },
    }
    path.write_text(json.dumps(body), encoding="utf-8")
    found = [(n.benchmark, n.metric, n.value, n.n) for n in vlmevalkit.read(path)]
    expected = [
        ("BLINK", "Overall", 0.53, None),
        ("BLINK", "Jigsaw", 0.6, None),
        ("OCRBench", "Final Score", 622, None),
    ]
    assert found == expected
    assert {n.model_name for n in vlmevalkit.read(path, "OCRBench")} == {"llava_onevision_qwen2_7b_ov"}


def test_vlmevalkit_tables_are_named_as_its_status_names_them(tmp_path: Path) -> None:
    folder = tmp_path / "llava_onevision_qwen2_7b_ov" / "T20260818_G0123abcd"
    name = "llava_onevision_qwen2_7b_ov_MMBench_DEV_EN_V11_acc.csv"
    rows = [{"split": "dev", "Overall": "0.81", "AR": "0.78"}, {"split": "none", "Overall": "0.5", "AR": ""}]
    found = vlmevalkit.read(table(folder / name, rows))
    assert {(n.model_name, n.benchmark) for n in found} == {("llava_onevision_qwen2_7b_ov", "MMBench_DEV_EN_V11")}
    assert {n.metric: n.value for n in found} == {"split=dev|Overall": 0.81, "split=dev|AR": 0.78, "Overall": 0.5}
    as_json = folder / "llava_onevision_qwen2_7b_ov_BLINK_acc.json"
    as_json.write_text(json.dumps([{"split": "none", "Overall": 0.53}]), encoding="utf-8")
    assert [(n.benchmark, n.metric, n.value) for n in vlmevalkit.read(as_json)] == [("BLINK", "Overall", 0.53)]


def test_vlmevalkit_scores_by_object_and_by_judge(tmp_path: Path) -> None:
    path = tmp_path / "llava_v1.5_7b_OCRBench_score.json"
    body = {"Text Recognition": 233, "Final Score": 622, "by language": {"en": [0.5], "zh": [0.4, 0.3]}, "note": "x"}
    path.write_text(json.dumps(body), encoding="utf-8")
    found = vlmevalkit.read(path, "OCRBench")
    assert {(n.model_name, n.benchmark) for n in found} == {("llava_v1.5_7b", "OCRBench")}
    assert {n.metric: n.value for n in found} == {
        "Text Recognition": 233,
        "Final Score": 622,
        "by language|en": 0.5,
        "by language|zh|0": 0.4,
        "by language|zh|1": 0.3,
    }
    judged = tmp_path / "llava_v1.5_7b_MathVista_MINI_gpt-4o-mini_score.csv"
    rows = [{"Task&Skill": "Overall", "tot": 1000, "acc": 61.5}, {"Task&Skill": "algebra", "tot": 281, "acc": 50.0}]
    found = vlmevalkit.read(table(judged, rows), "MathVista_MINI")
    assert (found[0].model_name, found[0].benchmark) == ("llava_v1.5_7b", "MathVista_MINI")
    assert [n.value for n in found if n.metric == "Task&Skill=Overall|acc"] == [61.5]


def test_no_number_is_lost_to_another_of_its_name(tmp_path: Path) -> None:
    rows = [{"split": "none", "Overall": 0.1}, {"split": "none", "Overall": 0.2}]
    found = vlmevalkit.read(table(tmp_path / "a_b_acc.csv", rows), "b")
    assert [(n.metric, n.value) for n in found] == [("Overall", 0.1), ("Overall#2", 0.2)]


BAD: dict[str, tuple[str, str, str]] = {
    "no json": ("lmms_eval", "x_results.json", "{"),
    "another json": ("lmms_eval", "x_results.json", '{"results": [1]}'),
    "no model": ("lmms_eval", "x_results.json", '{"results": {"t": {"acc,none": 1}}}'),
    "no number": ("lmms_eval", "x_results.json", '{"results": {"t": {"acc,none": "N/A"}}, "model_name": "m"}'),
    "a count that is none": (
        "lmms_eval", "x_results.json", '{"results": {"t": {"a": 1}}, "model_name": "m", "n-samples": {"t": "all"}}'
    ),
    "samples": ("lmms_eval", "x_samples_t.jsonl", '{"doc_id": 0}'),
    "a spreadsheet": ("vlmevalkit", "m/m_BLINK.xlsx", "PK"),
    "pickled": ("vlmevalkit", "m/m_BLINK.pkl", "x"),
    "a short row": ("vlmevalkit", "m/m_BLINK_acc.csv", '"split","Overall"\n"none"\n'),
    "a long row": ("vlmevalkit", "m/m_BLINK_acc.csv", '"split","Overall"\n"none","1","2"\n'),
    "an open quote": ("vlmevalkit", "m/m_BLINK_acc.csv", '"split","Overall"\n"none","1\n'),
    "doubled columns": ("vlmevalkit", "m/m_BLINK_acc.csv", '"a","a"\n"1","2"\n'),
    "no column of numbers": ("vlmevalkit", "m/m_BLINK_acc.csv", '"question","answer"\n"what","this"\n'),
    "empty": ("vlmevalkit", "m/m_BLINK_acc.csv", ""),
    "a status without datasets": ("vlmevalkit", "status.json", '{"model_name": "m", "datasets": [1]}'),
    "whose model": ("vlmevalkit", "runs/m_BLINK_acc.csv", '"Overall"\n"1"\n'),
    "not finite": ("vlmevalkit", "m/m_BLINK_score.json", '{"Overall": NaN, "x": Infinity}'),
}  # fmt: skip


@pytest.mark.parametrize(("tool", "name", "text"), BAD.values(), ids=BAD)
def test_what_is_no_result_file_is_one_line_and_writes_nothing(  # noqa: PLR0917
    tool: str, name: str, text: str, home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    before = tree(home.root)
    assert main(["import", tool.replace("_", "-"), str(path)]) == 1
    told = capsys.readouterr().err
    assert (told.count("\n"), str(path) in told, "expected" in told) == (1, True, True)
    assert tree(home.root) == before


def test_binary_and_missing_files_are_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "x_results.json").write_bytes(b"\xff\xfe\x00")
    for name in ("x_results.json", "nowhere.json"):
        with pytest.raises(BadImport, match=name):
            import_file(store, "lmms_eval", tmp_path / name)
    assert not store.root.exists()


def test_a_file_is_imported_once_whatever_it_is_called(store: Store, tmp_path: Path) -> None:
    path = lmms(tmp_path)
    first = import_file(store, "lmms_eval", path)
    again = import_file(store, "lmms_eval", path.rename(tmp_path / "other.json"))
    assert (first.new, again.new, again.manifest) == (True, False, first.manifest)
    assert len(list(store.root.glob("benchmarks/*.json"))) == 1


def test_a_file_can_not_be_tied_twice(store: Store, tmp_path: Path) -> None:
    synthetic.small(store)
    path = lmms(tmp_path)
    import_file(store, "lmms_eval", path)
    with pytest.raises(BadImport, match=r"another --model or --benchmark.*delete .*benchmarks/\w{32}\.json"):
        import_file(store, "lmms_eval", path, model="onevision")
    with pytest.raises(UnknownName, match="did you mean 'onevision'"):
        import_file(store, "lmms_eval", path, model="onevison")


def test_rows_are_absorbed_and_tied_to_a_model(
    home: Home, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = synthetic.small(store)
    manifest = next(m for m in store.models() if m["name"] == "onevision")
    assert world.models["onevision"].name == "onevision"
    for model in ("onevision", manifest["hash"], manifest["hash"][:8]):
        for file in store.root.glob("benchmarks/*"):
            file.unlink()
        assert main(["import", "lmms-eval", str(lmms(tmp_path)), "--model", model]) == 0
        assert "imported  4 numbers, tied to" in capsys.readouterr().out
    (path,) = store.root.glob("benchmarks/*.json")
    absorbed = rows_of("benchmarks", path, store.read_json(path))["benchmarks"]
    assert {row["model"] for row in absorbed} == {number(manifest["hash"])}
    query = """SELECT benchmarks.benchmark, value, n, tool, models.name FROM benchmarks JOIN models USING (model)
        ORDER BY 1"""
    assert Catalog(home.catalog).query(query).rows == [
        ("blink", 0.4612, None, "lmms_eval", "onevision"),
        ("blink_depth", 0.5, 124, "lmms_eval", "onevision"),
        ("mme", 1488.25, 2374, "lmms_eval", "onevision"),
        ("mmmu_val", 0.31, 90, "lmms_eval", "onevision"),
    ]
    assert main(["db", "rebuild"]) == 0
    assert Catalog(home.catalog).query("SELECT count(*) FROM benchmarks").rows == [(4,)]


def test_an_unknown_tool_or_model_is_one_line(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "lmms-evil", str(tmp_path)]) == 1
    assert "did you mean 'lmms_eval'" in capsys.readouterr().err
    assert main(["import", "lmms-eval", str(lmms(tmp_path)), "--model", "onevision"]) == 1
    told = capsys.readouterr().err
    assert (told.count("\n"), "a model is known once" in told) == (1, True)
