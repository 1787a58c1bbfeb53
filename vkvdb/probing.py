"""What a job would take, measured on its first few images."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vkvdb.extraction import Source
from vkvdb.paths import Home
from vkvdb.store import Store

if TYPE_CHECKING:
    from vkvdb.planning import Planned

IMAGES = 5


@dataclass(frozen=True)
class Probe:
    """Images to capture, what their tokens weigh, and how long the model takes for them."""

    captures: int
    gigabytes: float
    seconds_per_image: float

    @property
    def minutes(self) -> float:
        return self.captures * self.seconds_per_image / 60


def probe(planned: Planned, home: Home, store: Store, images: int = IMAGES) -> Probe:
    """Load the model and capture the first images, once to warm up and once on the clock; nothing is written."""
    spec = planned.job.spec
    few = list(planned.rows[:images])
    capture = dataclasses.replace(spec.capture, block=len(few))
    job = dataclasses.replace(planned.job, spec=dataclasses.replace(spec, capture=capture))
    source = Source(job, home, store, few, planned.shapes)
    source.capture(0)
    start = time.perf_counter()
    source.capture(0)
    seconds = (time.perf_counter() - start) / len(few)
    return Probe(len(planned.rows), planned.bytes_per_image * len(planned.rows) / 1e9, seconds)
