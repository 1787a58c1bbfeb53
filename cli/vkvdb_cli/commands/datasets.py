"""List the datasets that can be ingested and those that are, or show one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from vkvdb.paths import Home
    from vkvdb.store import Store


@click.group()
def command() -> None:
    """What datasets there are."""


@command.command("list")
def list_datasets() -> None:
    """All known datasets, and of those that are ingested where they lie and what they hold."""
    from vkvdb.ingestion import known
    from vkvdb.paths import find_home
    from vkvdb.store import Store
    from vkvdb_cli.output import print_table

    home = find_home()
    store = Store(home.store)
    about = known()
    rows: list[list[Any]] = []
    for name in sorted({*about, *(manifest["name"] for manifest in store.datasets())}):
        manifest = store.dataset_named(name)
        if manifest is None:
            rows.append([name, "no", None, "", "", about[name]])
            continue
        samples = ", ".join(f"{count} {kind}" for kind, count in manifest["samples"].items())
        where = _where(home, store, manifest)
        rows.append([name, manifest["hash"][:8], manifest["images"], samples, where, about.get(name, "")])
    print_table(["dataset", "ingested", "images", "samples", "where", "about"], rows)


@command.command()
@click.argument("dataset", metavar="NAME-SPLIT")
@click.option("--problems", is_flag=True, help="What was left out when it was ingested, a line each.")
def show(dataset: str, problems: bool) -> None:
    """An ingested dataset."""
    from vkvdb.errors import NotIngested
    from vkvdb.ingestion import adapter
    from vkvdb.paths import find_home
    from vkvdb.store import Store
    from vkvdb_cli.output import print_table

    home = find_home()
    store = Store(home.store)
    manifest = store.dataset_named(dataset)
    if manifest is None:
        adapter(dataset)  # an unknown name is another mistake
        known = ", ".join(sorted({m["name"] for m in store.datasets()})) or "none"
        raise NotIngested(name=dataset, known=known, hint=" --root DIR")
    if problems:
        for problem in manifest["problems"]:
            click.echo(f"{problem['where']}: {problem['what']}")
        if not manifest["problems"]:
            click.echo(f"{dataset} has no problems")
        return
    shown = ("name", "hash", "adapter", "adapter_version", "split", "images", "created", "host")
    rows = [(key, str(manifest[key])) for key in shown]
    rows.insert(1, ("where", _where(home, store, manifest)))
    rows += [(f"samples: {kind}", str(count)) for kind, count in manifest["samples"].items()]
    rows += [("problems", str(len(manifest["problems"])))]
    rows += [(f"left out, on images with problems: {kind}", str(n)) for kind, n in manifest["left_out"].items()]
    print_table(["of", dataset], rows)


def _where(home: Home, store: Store, manifest: dict[str, Any]) -> str:
    """Its folder on this host, or that it is gone."""
    from vkvdb.errors import NotIngested
    from vkvdb.extraction import dataset_root

    try:
        return str(dataset_root(home, store, manifest))
    except NotIngested as error:
        return str(error.facts["known"])
