"""Jobs as people see them: what the queue intends and what the store has, in one list."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vkvdb.queue import Row
    from vkvdb.store import Store

# todo, doing, failed and cancelled are the queue's word; done means that the store has the job's manifest; gone means
# that the queue saw it done and the store has it no more.
STATES = ("todo", "doing", "done", "failed", "cancelled", "gone")


@dataclasses.dataclass(frozen=True)
class Listed:
    """An edition of a job: its state, its row of the queue and its manifest, of which one may be missing."""

    job: str
    edition: int
    state: str
    row: Row | None
    manifest: dict[str, Any] | None

    @property
    def spec(self) -> dict[str, Any]:
        return self._either("spec")

    @property
    def provenance(self) -> dict[str, Any]:
        return self._either("provenance")

    def _either(self, field: str) -> dict[str, Any]:
        found: dict[str, Any] = self.manifest[field] if self.manifest else getattr(self.row, field)
        return found

    @property
    def since(self) -> str:
        """When it was queued (ISO, UTC), or where the queue no longer knows, started."""
        if self.row:
            return moment(self.row.queued)
        return str(self.manifest["started"]) if self.manifest else ""


def listed(rows: list[Row], store: Store) -> list[Listed]:
    """Every edition of every job that the queue or the store knows, the oldest first."""
    manifests = {(m["job"], m["edition"]): m for m in store.jobs()}
    waiting = {(row.job, row.edition): row for row in rows}
    found = []
    for key in manifests.keys() | waiting.keys():
        row, manifest = waiting.get(key), manifests.get(key)
        state = "done" if manifest else row.state if row and row.state != "done" else "gone"
        found.append(Listed(key[0], key[1], state, row, manifest))
    return sorted(found, key=lambda one: (one.since, one.job, one.edition))


def find(prefix: str, rows: list[Row], store: Store) -> Listed:
    """The newest edition of the job whose id begins so. Raises NoSuchJob, AmbiguousJob or BadOption."""
    from vkvdb.queue import match

    known = listed(rows, store)
    job = match(prefix, [one.job for one in known])
    return max((one for one in known if one.job == job), key=lambda one: one.edition)


def describe(spec: dict[str, Any], provenance: dict[str, Any]) -> str:
    """A job in a few words: what, of which model, on what."""
    return f"{what(spec)}  {provenance['model']}  {provenance['dataset']}"


def what(spec: dict[str, Any]) -> str:
    """What a job does: the task that it scores, or its kind; an ask job may do both."""
    task, kind = str(spec.get("task", "")), str(spec["kind"])
    name = task if kind == "score" else " ".join(filter(None, (kind, task)))
    prefix = spec.get("capture", {}).get("prefix", "")
    return f"{name} after '{prefix}'" if prefix else name


def moment(seconds: float) -> str:
    """Seconds since 1970 as ISO text in UTC, as in manifests."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
