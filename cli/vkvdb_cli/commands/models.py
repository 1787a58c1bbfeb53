"""List the models, and check that what is read of one is right."""

from __future__ import annotations

import math
import socket
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from vkvdb.paths import find_home
from vkvdb.store import Store
from vkvdb_cli.output import print_csv, print_json, print_table

if TYPE_CHECKING:
    from vkvdb.models._checkpoint import Checkpoint
    from vkvdb.models._checks import Report
    from vkvdb.types import LoadOptions

LISTED = ("model", "name", "family", "variant", "dtype", "layers", "heads", "dim", "verdict", "deviation", "checked")
FOUND = ("check", "largest deviation", "allowed", "where")


@click.group()
def command() -> None:
    """List the models, and check that what is read of one is right.

    A model is a folder in Hugging Face layout, a hub id, one that ships (`toy`), or a family without files (`pixels`).
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON, with whole ids.")
@click.option("--csv", "as_csv", is_flag=True, help="As CSV, with whole ids.")
def list_(as_json: bool, as_csv: bool) -> None:
    """List the models that were used or checked here, with the verdict of the newest check."""
    store = Store(find_home().store)
    checks = newest_checks(store)
    rows = [_listed(manifest, checks.get(manifest["hash"])) for manifest in store.models()]
    rows.sort(key=lambda row: (row[1], row[0]))
    if as_json:
        print_json(LISTED, rows)
    elif as_csv:
        print_csv(LISTED, rows)
    elif rows:
        print_table(LISTED, [(row[0][:8], *row[1:]) for row in rows])
    else:
        click.echo("no models yet; type: vkvdb models check MODEL")


@command.command()
@click.argument("model")
@click.option("--square", type=click.IntRange(1), help="Stretch images to N x N pixels first.")
@click.option("--dtype", help="float32, float16 or bfloat16; the checkpoint's own unless told.")
@click.option("--attention", default="sdpa", show_default=True, help="The attention implementation.")
@click.option("--quantisation", type=click.Choice(["4bit", "8bit"]), help="Load with bitsandbytes.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 ...")
@click.option("--device-map", default="", help="Spread a large model, as accelerate does: auto.")
@click.pass_context
def check(context: click.Context, /, model: str, **options: Any) -> None:
    """Prove that what is read of MODEL is right, layer by layer; exit with 1 unless it is SUPPORTED.

    The cache against the projections, with text after the image and without, batched and alone, padded and not, stopped
    early and not, token map, ids and pixels against transformers' own processor.
    """
    from vkvdb.models._checkpoint import resolve
    from vkvdb.models._checks import SUPPORTED
    from vkvdb.models._checks import check as run
    from vkvdb.planning import publish_model
    from vkvdb.types import LoadOptions
    from vkvdb_cli.progress import progress

    home = find_home()
    store = Store(home.store)
    checkpoint = resolve(model, home)
    chosen = LoadOptions(**options)
    with progress(f"checking {checkpoint.name}") as advance:
        report = run(checkpoint, chosen, lambda _: advance())
    publish_model(store, checkpoint)
    publish(store, checkpoint, chosen, report)
    if report.findings:
        print_table(FOUND, [(f.check, f.deviation, f.tolerance, f.where) for f in report.findings])
    click.echo(f"{report.verdict}  {checkpoint.name}{f'  {report.why}' if report.why else ''}")
    if report.verdict != SUPPORTED:
        context.exit(1)


def publish(store: Store, checkpoint: Checkpoint, options: LoadOptions, report: Report) -> None:
    """Keep a verdict in the store: checks/MODEL-DIGEST.json."""
    from vkvdb.extraction import versions
    from vkvdb.jobs import digest

    body = {
        "kind": "check",
        "model": checkpoint.id,
        "name": checkpoint.name,
        "verdict": report.verdict,
        "why": report.why,
        "deviations": {
            f.check: {
                "deviation": _finite(f.deviation),
                "tolerance": f.tolerance,
                "where": f.where,
                "layers": {layer: _finite(value) for layer, value in f.layers.items()},
            }
            for f in report.findings
        },
        "options": {
            "dtype": options.dtype or checkpoint.dtype,
            "attention": options.attention,
            "quantisation": options.quantisation,
            "square": options.square,
        },
        "device": report.device,
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        "host": socket.gethostname(),
        "versions": versions(),
    }
    store.publish_json(store.root / "checks" / f"{checkpoint.id}-{digest(body)[:8]}.json", body)


def newest_checks(store: Store) -> dict[str, dict[str, Any]]:
    """{model: the manifest of its newest check}."""
    found = sorted((store.read_json(path) for path in store.root.glob("checks/*.json")), key=lambda c: c["created"])
    return {manifest["model"]: manifest for manifest in found}


def _listed(manifest: dict[str, Any], checked: dict[str, Any] | None) -> tuple[Any, ...]:
    main = "decoder" if any(s["stage"] == "decoder" for s in manifest["sites"]) else "encoder"
    sites = [s for s in manifest["sites"] if s["stage"] == main]
    shape = next((s for s in sites if s["part"] == "key"), sites[0])
    worst = _worst(checked) if checked else None
    return (
        manifest["hash"],
        manifest["name"],
        manifest["family"],
        manifest["variant"],
        manifest["dtype"],
        len({s["layer"] for s in sites}),
        shape["heads"],
        shape["dim"],
        checked["verdict"] if checked else "not checked",
        worst,
        checked["created"][:19] if checked else None,
    )


def _worst(checked: dict[str, Any]) -> float | None:
    """The largest deviation of a check; None where nothing could be compared."""
    values = [d["deviation"] for d in checked["deviations"].values()]
    return None if not values or None in values else max(values)


def _finite(value: float) -> float | None:
    """JSON has no infinity: null is what could not be compared."""
    return value if math.isfinite(value) else None
