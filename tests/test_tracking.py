from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import synthetic

from vkvdb import tracking
from vkvdb.catalog import Catalog
from vkvdb.errors import BadOption, CatalogLocked, TrackingFailed
from vkvdb.paths import Home
from vkvdb.store import Store
from vkvdb_cli import _after
from vkvdb_cli.main import main


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory):
    """MLflow's file takes seconds to make: once for all tests."""
    home = Home(tmp_path_factory.mktemp("mlflow"))
    with tracking._client(home, None):
        pass
    return home.mlflow


@pytest.fixture
def world(home, empty_mlflow):
    shutil.copy(empty_mlflow, home.mlflow)
    made = synthetic.small(Store(home.store))
    Catalog(home.catalog).absorb(made.store)
    return made


def runs(home):
    with tracking._client(home, None) as (client, _):
        return {
            run.data.tags["vkvdb.job"]: run
            for experiment in client.search_experiments()
            for run in client.search_runs([experiment.experiment_id])
        }


def test_every_score_job_is_a_run_once(home, world):
    catalog = Catalog(home.catalog)
    job = world.score(
        "onevision", 0.2, prefix="a cat", task="foreground", metrics=("iou", "pck@0.1"), notes={"title": "T"}
    )
    catalog.absorb(world.store)
    ids = {m["job"] for m in world.store.jobs()}
    assert set(tracking.mirror(home, catalog)) == ids
    assert tracking.mirror(home, catalog) == []
    found = runs(home)
    assert set(found) == {f"{each}/0" for each in ids}
    run = found[f"{job}/0"]
    assert run.info.status == "FINISHED"
    assert run.info.end_time - run.info.start_time == 65_000
    assert (
        run.data.params | {"prefix": "a cat", "family": "llava_onevision", "n": "48", "task": "foreground"}
        == run.data.params
    )
    assert "square" not in run.data.params
    assert run.data.tags["vkvdb.title"] == "T"
    metrics = set(run.data.metrics)
    assert {"iou/value/best", "iou/value/mean", "iou/tower", "iou/projector", "iou/position", "iou/ceiling"} <= metrics
    assert "pck_0.1/key_unrotated/best_in_sample" in metrics  # @ is no letter of MLflow's
    with tracking._client(home, None) as (client, _):
        assert client.get_experiment(run.info.experiment_id).name == "coco-val/foreground"
        assert str(home.root) in client.get_experiment(run.info.experiment_id).artifact_location


def test_a_curve_is_a_step_a_layer(home, world):
    catalog = Catalog(home.catalog)
    tracking.mirror(home, catalog)
    rows = catalog.query(
        "SELECT layer, max(value), avg(value) FROM results"
        " WHERE model_name = 'onevision' AND part = 'value' AND head >= 0 GROUP BY layer ORDER BY layer"
    ).rows
    run = next(r for r in runs(home).values() if r.data.params["model_name"] == "onevision")
    with tracking._client(home, None) as (client, _):
        for name, column in (("best", 1), ("mean", 2)):
            history = client.get_metric_history(run.info.run_id, f"pck/value/{name}")
            assert [(m.step, m.value) for m in history] == [(r[0], pytest.approx(r[column])) for r in rows]
    assert run.data.metrics["pck/value/best_in_sample"] == pytest.approx(max(r[1] for r in rows))
    encoder = next(r for r in runs(home).values() if r.data.params["model_name"] == "dinov2_small")
    assert "pck/encoder/best" in encoder.data.metrics
    assert "pck/tower" not in encoder.data.metrics


def test_a_new_edition_is_a_run_of_its_own(home, world):
    job = world.score("onevision", 0.2, task="foreground")
    Catalog(home.catalog).absorb(world.store)
    assert job in tracking.mirror(home, Catalog(home.catalog))
    world.score("onevision", 0.2, task="foreground", edition=1)
    Catalog(home.catalog).absorb(world.store)
    assert tracking.mirror(home, Catalog(home.catalog)) == [job]
    assert {f"{job}/0", f"{job}/1"} <= set(runs(home))


def test_a_page_is_kept_in_one_run_and_renewed(home, empty_mlflow, tmp_path):
    shutil.copy(empty_mlflow, home.mlflow)
    page = tmp_path / "some page.html"
    for text in ("first", "second"):
        page.write_text(text)
        run = tracking.log_page(home, "coco-val/report", "report o'hara", page, {"charts/layers.png": text.encode()})
    with tracking._client(home, None) as (client, _):
        (found,) = client.search_runs([client.get_experiment_by_name("coco-val/report").experiment_id])
        assert (found.info.run_id, found.info.run_name, found.info.status) == (run, "report o'hara", "FINISHED")
        assert [a.path for a in client.list_artifacts(run)] == ["charts", "report.html"]
    kept = {p.name: p.read_text() for p in (home.root / "mlflow-artifacts").rglob("*.*")}
    assert kept == {"report.html": "second", "layers.png": "second"}


def test_a_chart_is_kept_with_the_runs_of_its_jobs(home, world, tmp_path):
    tracking.mirror(home, Catalog(home.catalog))
    one, two, *_ = sorted(m["job"] for m in world.store.jobs())
    assert tracking.log_chart(home, "layers", {one, two, "0" * 32}, b"old") == 2
    assert tracking.log_chart(home, "layers", {one}, b"new") == 1
    kept = {path.read_bytes() for path in home.root.glob("mlflow-artifacts/**/charts/layers.png")}
    assert kept == {b"new", b"old"}
    # Calibrate and ask jobs have no runs: the chart has one, and the same again.
    for picture in (b"first", b"second"):
        assert tracking.log_chart(home, "keys", {"f" * 32}, picture) == 1
    (path,) = home.root.glob("mlflow-artifacts/**/charts/keys.png")
    assert path.read_bytes() == b"second"
    with tracking._client(home, None) as (client, _):
        (run,) = client.search_runs([client.get_experiment_by_name("analyses").experiment_id])
        assert (run.info.run_name, run.info.status) == ("analysis keys", "FINISHED")
        (artifact,) = client.list_artifacts(run.info.run_id, "charts")
        assert artifact.path == "charts/keys.png"


def test_a_chart_makes_no_mlflow_where_nothing_was_mirrored(home):
    assert tracking.log_chart(home, "layers", {"0" * 32}, b"") == 0
    assert not home.mlflow.exists()


def test_a_run_that_a_dead_process_began_is_completed(home, world, monkeypatch):
    from mlflow import MlflowClient

    def killed(*_, **__):
        raise OSError("killed")

    catalog = Catalog(home.catalog)
    job = world.score("onevision", 0.2, task="foreground")
    catalog.absorb(world.store)
    monkeypatch.setattr(MlflowClient, "log_batch", killed)
    with pytest.raises(TrackingFailed, match="killed"):
        tracking.mirror(home, catalog, [job])
    monkeypatch.undo()
    assert tracking.mirror(home, catalog, [job]) == [job]
    (run,) = runs(home).values()
    assert (run.info.status, len(run.data.metrics) > 5) == ("FINISHED", True)


def test_more_metrics_than_a_server_takes_at_once(home, world, monkeypatch):
    monkeypatch.setattr(tracking, "_BATCH", 3)
    tracking.mirror(home, Catalog(home.catalog))
    run = next(r for r in runs(home).values() if r.data.params["model_name"] == "onevision")
    assert len(run.data.metrics) == 3 * 3 + 4  # best, mean, best_in_sample a part; four references


def silent_server() -> socket.socket:
    """Takes connections and says nothing."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()
    return server


def test_a_server_that_does_not_answer_is_given_up_soon(home, world, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with silent_server() as server:
        uri = f"http://me:secret@127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(TrackingFailed, match="results are safe") as refused:
            tracking.mirror(home, Catalog(home.catalog), uri=uri)
        assert "\n" not in str(refused.value)
        assert "secret" not in str(refused.value).partition("did not answer")[0]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        world.score("onevision", 0.2, task="foreground")
        _after.absorb_and_mirror(home)  # says it, and dooms nothing
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "did not answer" in err
    assert Catalog(home.catalog).query("SELECT count(*) FROM jobs").rows == [(4,)]


def test_the_time_out_is_five_seconds_unless_told(monkeypatch, home):
    for name in tracking._SOON:
        monkeypatch.delenv(name, raising=False)
    seen = {}

    def fail(*_, **__):
        seen.update(os.environ)
        raise OSError("enough")

    monkeypatch.setattr("mlflow.MlflowClient", fail)
    with pytest.raises(TrackingFailed, match="enough"):
        tracking.mirror(home, Catalog(home.catalog), uri="http://127.0.0.1:1")
    assert (seen["MLFLOW_HTTP_REQUEST_TIMEOUT"], seen["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) == ("5", "0")
    assert seen["MLFLOW_DISABLE_TELEMETRY"] == seen["DO_NOT_TRACK"] == "true"


def test_a_file_that_is_not_mlflows_is_one_line(home, world):
    home.mlflow.write_bytes(b"no database" * 100)
    with pytest.raises(TrackingFailed) as refused:
        tracking.mirror(home, Catalog(home.catalog))
    assert "\n" not in str(refused.value)


def test_processes_that_begin_at_once_make_one_file(home):
    """Two makers at a time are what MLflow can't bear."""
    code = (
        "from vkvdb import tracking; from vkvdb.paths import find_home\n"
        "with tracking._client(find_home(), None): print('fine')"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [p.communicate()[0] for p in processes] == ["fine\n", "fine\n"]
    assert sorted(p.name for p in home.root.glob("mlflow*")) == ["mlflow.lock", "mlflow.sqlite"]


def test_sync_absorbs_and_mirrors(home, empty_mlflow, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_mlflow, home.mlflow)
    synthetic.small(Store(home.store))
    assert main(["sync"]) == 0
    assert capsys.readouterr() == ("absorbed: 3 models, 1 datasets, 3 jobs\nmirrored: 3 jobs\n", "")
    assert main(["sync"]) == 0
    assert capsys.readouterr() == ("absorbed: nothing new\nmirrored: nothing new\n", "")
    assert [p.name for p in tmp_path.iterdir()] == ["home"]  # nothing of MLflow's lies where one stood


def test_after_work_new_jobs_are_mirrored_and_locks_are_told(home, world, capsys, monkeypatch):
    _after.absorb_and_mirror(home)
    assert runs(home) == {}  # they were absorbed before: `vkvdb sync` mirrors all
    job = world.score("onevision", 0.2, task="foreground")
    _after.absorb_and_mirror(home)
    assert set(runs(home)) == {f"{job}/0"}
    assert capsys.readouterr() == ("", "")

    def locked(*_):
        raise CatalogLocked(why="PID 7")

    monkeypatch.setattr(Catalog, "absorb", locked)
    _after.absorb_and_mirror(home)
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), "PID 7" in err) == ("", 1, True)


def test_ctrl_c_ends_the_interface_and_its_children(home, empty_mlflow, monkeypatch):
    shutil.copy(empty_mlflow, home.mlflow)
    started = []
    real = subprocess.Popen

    def instead(command, **options):
        assert command[1:4] == ["-m", "mlflow", "ui"]
        assert f"sqlite:///{home.mlflow}" in command
        child = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
        process = real([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True, start_new_session=True)
        started.append((process, int(process.stdout.readline())))
        threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
        return process

    monkeypatch.setattr(tracking.subprocess, "Popen", instead)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process is born deaf to it
    try:
        assert tracking.serve(home, free_port()) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    process, child = started[0]
    assert process.poll() is not None
    deadline = time.monotonic() + 240
    status = Path(f"/proc/{child}/status")
    while status.exists() and "\nState:\tZ" not in status.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_port_that_is_taken_is_told(home):
    with silent_server() as server, pytest.raises(BadOption, match="--port"):
        tracking.serve(home, server.getsockname()[1])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_the_real_interface_serves_and_ends(home, world):
    tracking.mirror(home, Catalog(home.catalog))
    port = free_port()
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code += f"; from vkvdb_cli.main import main; sys.exit(main(['ui', '--port', '{port}']))"
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while True:
        try:
            assert urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
