"""List the jobs, see what became of one, try it again or cancel it.

A job is named by the first characters of its id, four at least.
"""

from __future__ import annotations

import json
from typing import Any

import click

from vkvdb.errors import BadOption
from vkvdb.paths import find_home
from vkvdb.queue import Queue
from vkvdb.store import Store
from vkvdb_cli._jobs import STATES, Listed, describe, find, listed, moment, what
from vkvdb_cli.output import print_csv, print_json, print_table


@click.group()
def command() -> None:
    """List the jobs, see what became of one, try it again or cancel it.

    A job is named by the first characters of its id, four at least.
    """


@command.command("list")
@click.option("--state", type=click.Choice(STATES), help="Only jobs in this state.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, with whole ids.")
@click.option("--csv", "as_csv", is_flag=True, help="As CSV, with whole ids.")
def list_(state: str | None, as_json: bool, as_csv: bool) -> None:
    """List the jobs, the oldest first."""
    home = find_home()
    found = [one for one in listed(Queue(home.queue).rows(), Store(home.store)) if state in (None, one.state)]
    columns = ("job", "edition", "state", "what", "model", "dataset", "n", "of", "seconds", "attempt", "since", "error")
    rows = [_columns(one) for one in found]
    if as_json:
        print_json(columns, rows)
    elif as_csv:
        print_csv(columns, rows)
    elif rows:
        print_table(columns, [(job[:8], *rest) for job, *rest in rows])
    else:
        click.echo("no jobs" if state is None else f"no job is {state}")


def _columns(one: Listed) -> tuple[Any, ...]:
    """A row of `jobs list`; for a job that is being done, n of `of` says how far it is."""
    row, manifest = one.row, one.manifest
    n, of = (manifest["n"], manifest["of"]) if manifest else (row.progress, row.total) if row else (None, None)
    return (
        one.job,
        one.edition,
        one.state,
        what(one.spec),
        one.provenance["model"],
        one.provenance["dataset"],
        n,
        of,
        manifest["seconds"] if manifest else None,
        manifest["attempt"] if manifest else row.attempt if row else None,
        one.since,
        row.error if row and one.state == "failed" else None,
    )


@command.command()
@click.argument("job")
@click.option("--traceback", is_flag=True, help="Where in the code it failed.")
def show(job: str, traceback: bool) -> None:
    """Say what a job is, what became of it and where its results are."""
    home = find_home()
    store = Store(home.store)
    one = find(job, Queue(home.queue).rows(), store)
    lines: dict[str, Any] = {"job": one.job, "edition": one.edition, "state": one.state}
    lines |= _flat(one.provenance) | _flat(one.spec)
    if one.row:
        lines |= _of_queue(one)
    if one.manifest:
        lines |= _of_manifest(one.manifest, one, store)
    width = max(map(len, lines))
    for name, value in lines.items():
        click.echo(f"{name.ljust(width)}  {value}")
    if traceback:
        click.echo((one.row and one.row.traceback) or "there is no traceback")


def _of_queue(one: Listed) -> dict[str, Any]:
    assert one.row is not None
    lines: dict[str, Any] = {"queued": moment(one.row.queued)}
    if one.state == "done":
        return lines
    lines["attempt"] = one.row.attempt
    if one.state == "doing":
        lines["by"] = f"process {one.row.pid} on {one.row.host}, {one.row.progress or 0} of {one.row.total or '?'}"
    if one.row.error:
        lines["error"] = one.row.error
    return lines


def _of_manifest(manifest: dict[str, Any], one: Listed, store: Store) -> dict[str, Any]:
    told = ("n", "of", "attempt", "started", "finished", "seconds", "host", "device", "captured", "versions", "notes")
    lines = {name: _shown(manifest[name]) for name in told if manifest.get(name) not in (None, "", {})}
    rows = {"score": "scores", "ask": "answers"}.get(one.spec["kind"])
    if rows:
        lines["results"] = store.root / rows / one.job / str(one.edition)
    else:
        lines["results"] = store.root / "captures" / str(manifest["notes"].get("capture", ""))
    shards = len(manifest["answers" if rows == "answers" else "shards"])
    return {**lines, "shards": shards, "manifest": store.job_path(one.job, one.edition)}


def _flat(spec: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"capture.dtype": ...} of a nested specification; what is empty is left out."""
    lines: dict[str, Any] = {}
    for name, value in spec.items():
        if isinstance(value, dict):
            lines |= _flat(value, f"{prefix}{name}.")
        elif value not in (None, "", []):
            lines[prefix + name] = _shown(value)
    return lines


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(inner)}" for name, inner in value.items())
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value


@command.command()
@click.argument("job")
def retry(job: str) -> None:
    """Let a job that failed or was cancelled be done after all."""
    one, queue = _waiting(job)
    row = queue.retry(one.job)
    click.echo(f"to do again  {row.job[:8]}  {describe(row.spec, row.provenance)}; run with: vkvdb work")


@command.command()
@click.argument("job")
def cancel(job: str) -> None:
    """Take a job out of the queue; a worker that is at it stops soon, and what it has published stays."""
    one, queue = _waiting(job)
    row = queue.cancel(one.job)
    click.echo(f"cancelled  {row.job[:8]}  {describe(row.spec, row.provenance)}")


def _waiting(job: str) -> tuple[Listed, Queue]:
    """A job that is not done. Raises BadOption for one that is."""
    home = find_home()
    queue = Queue(home.queue)
    one = find(job, queue.rows(), Store(home.store))
    if one.state == "done":
        why = "it is done; to run it once more, add --again to the command that queued it"
        raise BadOption(option="job", value=one.job[:8], why=why)
    return one, queue
