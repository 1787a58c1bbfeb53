"""The MLflow mirror: every score job as a run, so that people can compare models where they compare everything else.

A mirror and nothing more: it is made from the catalog, a job that has a run is not touched again, and whatever goes
wrong here (TrackingFailed) costs no result. The only module that knows MLflow.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from vkvdb.catalog import Catalog
from vkvdb.errors import BadOption, TrackingFailed, VkvdbError
from vkvdb.paths import Home

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

# MLflow reads these when it is imported: no telemetry, and a server that does not answer is given up soon.
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
_SOON = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
# What the interface does not need: seven processes that wait for jobs of MLflow's own.
_LEAN = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
_BATCH = 1000  # metrics that a server takes at once
_TAG = "vkvdb.job"
_PAGE_TAG = "vkvdb.page"

_JOBS = """
SELECT * FROM jobs WHERE kind = 'score' AND ($jobs IS NULL OR list_contains($jobs, id)) ORDER BY finished, id, edition
"""

# Heads by themselves where there are heads. A tower, a projector and floors are one number; an encoder is a curve.
_CURVES = """
WITH of_job AS (
    SELECT sites.*, head, metric, value, max(head) OVER (PARTITION BY site, metric) AS last_head,
        bool_or(stage = 'decoder') OVER () AS has_decoder
    FROM summaries JOIN sites USING (site)
    WHERE job = $job AND grp = '' AND isfinite(value)
)
SELECT metric,
    CASE WHEN stage = 'floor' THEN part
        WHEN stage = 'ceiling' THEN stage
        WHEN stage = 'projector' OR stage = 'encoder' AND NOT has_decoder THEN stage
        WHEN stage = 'encoder' THEN 'tower'
        ELSE part
    END AS what,
    stage = 'decoder' OR stage = 'encoder' AND NOT has_decoder AS is_curve,
    layer, max(value) AS best, avg(value) AS mean
FROM of_job
WHERE head >= 0 OR last_head = -1
GROUP BY ALL
ORDER BY ALL
"""


def tracking_uri(home: Home, uri: str | None = None) -> str:
    """Where runs are mirrored to: what was asked for, else MLFLOW_TRACKING_URI, else a file in the home."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home.mlflow}"


def mirror(home: Home, catalog: Catalog, jobs: Sequence[str] | None = None, uri: str | None = None) -> list[str]:
    """Give every absorbed score job (or those of some ids) a run that has none; the ids of those that got one.

    A run of which a dead process wrote a part is completed. Raises TrackingFailed.
    """
    with _client(home, uri) as (client, is_ours):
        done = []
        for job in catalog.frame(_JOBS, {"jobs": None if jobs is None else list(jobs)}).to_dicts():
            curves = catalog.query(_CURVES, {"job": job["job"]}).rows
            location = _artifacts(home).as_uri() if is_ours else None
            if _mirror_job(client, job, curves, location):
                done.append(str(job["id"]))
        return done


def log_page(
    home: Home, experiment: str, name: str, page: Path, pictures: Mapping[str, bytes], *, uri: str | None = None
) -> str:
    """Keep a page, and pictures by the path that they shall have, as artifacts of the run of that name; its id.

    The same name again renews them. Raises TrackingFailed.
    """
    with _client(home, uri) as (client, is_ours), tempfile.TemporaryDirectory(dir=home.root) as folder:
        there = _experiment(client, experiment, _artifacts(home).as_uri() if is_ours else None)
        run = _named_run(client, there, name)
        for path, content in {"report.html": page.read_bytes(), **pictures}.items():
            place = Path(folder, path)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        client.log_artifacts(run, folder)
        return run


def log_chart(home: Home, name: str, jobs: Collection[str], picture: bytes, *, uri: str | None = None) -> int:
    """Keep an analysis' chart (PNG) as an artifact of the runs of the jobs that it draws; of how many runs.

    Only score jobs have runs: a chart of other jobs becomes an artifact of a run of its own. The same chart again
    renews it. Nothing is done where nothing was mirrored yet. Raises TrackingFailed.
    """
    if tracking_uri(home, uri) == f"sqlite:///{home.mlflow}" and not home.mlflow.exists():
        return 0
    with _client(home, uri) as (client, is_ours), tempfile.TemporaryDirectory(dir=home.root) as folder:
        every = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = [
            run.info.run_id
            for job in sorted(jobs)
            for run in client.search_runs(every, f"tags.`{_TAG}` LIKE '{job}/%'")
        ]
        if not runs:
            there = _experiment(client, "analyses", _artifacts(home).as_uri() if is_ours else None)
            runs = [_named_run(client, there, f"analysis {name}")]
        place = Path(folder, f"{name}.png")
        place.write_bytes(picture)
        for run in runs:
            client.log_artifact(run, str(place), "charts")
        return len(runs)


def initialise(home: Home) -> None:
    """Create MLflow's file in the home, once: half-made files and two makers at a time are what it can't bear."""
    if home.mlflow.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    private = home.mlflow.with_suffix(".part")
    private.unlink(missing_ok=True)
    store = SqlAlchemyStore(f"sqlite:///{private}", _artifacts(home).as_uri())  # type: ignore[no-untyped-call]
    store.engine.dispose()
    os.replace(private, home.mlflow)


def serve(home: Home, port: int) -> int:
    """Run MLflow's user interface on the home's runs until Ctrl-C; its exit code. BadOption when the port is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise BadOption(option="--port", value=port, why=error.strerror) from error
    with _client(home, f"sqlite:///{home.mlflow}"):
        pass
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{home.mlflow}", "--default-artifact-root", _artifacts(home).as_uri()]
    # A session of its own: it starts processes that have to end with it, and Ctrl-C should reach it once, from us.
    process = subprocess.Popen(command, env={**os.environ, **_QUIET, **_LEAN}, start_new_session=True, cwd=home.root)  # noqa: S603 - of our making
    old = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        # Not process.wait(): a signal that another thread of ours takes does not wake it.
        while process.poll() is None:
            time.sleep(0.2)
        return process.returncode
    except KeyboardInterrupt:
        return 0
    finally:
        _end(process)
        signal.signal(signal.SIGTERM, old)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(timeout=5)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


@contextmanager
def _client(home: Home, uri: str | None) -> Iterator[tuple[MlflowClient, bool]]:
    """A client, and whether it writes to the home's own file; one process of this home at a time."""
    for name, value in {**_QUIET, **_SOON}.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # Its migrations are told line by line otherwise.
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    chosen = tracking_uri(home, uri)
    try:
        with home.root.joinpath("mlflow.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            is_ours = chosen == f"sqlite:///{home.mlflow}"
            if is_ours:
                initialise(home)
            yield MlflowClient(tracking_uri=chosen), is_ours
    except VkvdbError:
        raise
    except Exception as error:  # MLflow lets errors of a dozen libraries through, and none of them may cost a result
        raise TrackingFailed(uri=_without_secrets(chosen), why=_reason(error)) from error


def _mirror_job(client: MlflowClient, job: dict[str, Any], curves: list[tuple[Any, ...]], location: str | None) -> bool:
    """Log one job, unless it has a finished run. The run is finished last, which is what marks it whole."""
    from mlflow.entities import Param, RunTag

    experiment = _experiment(client, f"{job['dataset_name']}/{job['task']}", location)
    tag = f"{job['id']}/{job['edition']}"
    found = client.search_runs([experiment], f"tags.`{_TAG}` = '{tag}'", max_results=1)
    if found and found[0].info.status == "FINISHED":
        return False
    if found:
        run = found[0]
    else:
        tags = {_TAG: tag, "vkvdb.device": job["device"], "vkvdb.host": job["host"], "vkvdb.versions": job["versions"]}
        name = f"{job['model_name']} {job['id'][:8]}"
        run = client.create_run(experiment, _milliseconds(job["started"]), tags, name)
    metrics = list(_metrics(curves, _milliseconds(job["finished"])))
    params = [Param(name, str(value)) for name, value in _parameters(job)]
    title = json.loads(job["notes"]).get("title", "")
    for start in range(0, max(1, len(metrics)), _BATCH):
        first = start == 0
        part = metrics[start : start + _BATCH]
        client.log_batch(
            run.info.run_id, part, params if first else (), [RunTag("vkvdb.title", title)] if first and title else ()
        )
    client.set_terminated(run.info.run_id, "FINISHED", _milliseconds(job["finished"]))
    return True


def _named_run(client: MlflowClient, experiment: str, name: str) -> str:
    """The run of that name that holds files and no job; made, and finished, where there is none."""
    # A hash, since MLflow's filters know no way to quote a quote.
    tag = hashlib.sha256(name.encode()).hexdigest()
    found = client.search_runs([experiment], f"tags.`{_PAGE_TAG}` = '{tag}'", max_results=1)
    run = found[0] if found else client.create_run(experiment, tags={_PAGE_TAG: tag}, run_name=name)
    client.set_terminated(run.info.run_id, "FINISHED")
    return str(run.info.run_id)


def _experiment(client: MlflowClient, name: str, location: str | None) -> str:
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name, location))


def _metrics(curves: list[tuple[Any, ...]], when: int) -> Iterator[Metric]:
    """A curve is a step a layer, with its best value beside it; what is no curve is one number."""
    from mlflow.entities import Metric

    tops: dict[str, float] = {}
    for metric, what, is_curve, layer, best, mean in curves:
        name = re.sub(r"[^\w\-./ ]", "_", f"{metric}/{what}")
        if not is_curve:
            yield Metric(name, best, when, 0)
            continue
        yield Metric(f"{name}/best", best, when, layer)
        yield Metric(f"{name}/mean", mean, when, layer)
        tops[name] = max(best, tops.get(name, best))
    for name, value in tops.items():
        yield Metric(f"{name}/best_in_sample", value, when, 0)


def _parameters(job: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The fields of the specification, and the counts beside them."""
    told = ("model_name", "family", "family_version", "variant", "checkpoint", "dataset_name", "task", "task_version",
            "view", "square", "prefix", "dtype", "quantisation", "attention", "block", "interventions", "selection",
            "layers", "parts", "seed", "limited", "edition", "n", "of")  # fmt: skip
    for name in told:
        if job[name] not in (None, ""):
            yield name, job[name]
    for name, value in json.loads(job["parameters"]).items():
        yield f"p.{name}", value


def _milliseconds(time: datetime) -> int:
    return int(time.replace(tzinfo=UTC).timestamp() * 1000)


def _artifacts(home: Home) -> Path:
    return home.root / "mlflow-artifacts"


def _reason(error: BaseException) -> str:
    """The first line of a long story."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) < 200 else f"{text[:200]}…"


def _without_secrets(uri: str) -> str:
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri
