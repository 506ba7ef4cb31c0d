"""Hand the regions that are not done to workers, and gather what they did.

What is done is what the ledger says, so a run that begins anew, one that goes on, one of
many parts and one beside a twin are all the same run: it computes what is missing.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from volpatch.compute.blend import Stats
from volpatch.core import resources as machine
from volpatch.core.box import Box
from volpatch.core.errors import (
    FunctionError,
    IncompleteError,
    RunError,
    SourceError,
    VolpatchError,
    traceback_text,
)
from volpatch.core.parse import show_numbers
from volpatch.report.progress import Progress
from volpatch.running.pool import Done, Event, Failed, Pool, Ticked, WorkerDiedError
from volpatch.running.worker import Outcome, Shared, Task, units_of
from volpatch.storage.ledger import Ledger
from volpatch.storage.output import Output
from volpatch.storage.records import DONE, Recorder, State

# of the same region, or of a chunk of the input: others may well be computed all the same
SURVIVED = (FunctionError, SourceError, WorkerDiedError)
# deaths of workers in a row, beyond one each, with no region finished: it is not the patch
MAX_DEATHS = 2
# what others did meanwhile is looked at so often; what they do in between may be done twice
REFRESH_SECONDS = 1.0
LISTED = 5


@dataclass
class Run:
    """One process's part in building an output.

    Attributes
    ----------
    state : of the regions when the run begins.
    numbers : regions that are asked for.
    retries : tries of a region after its first failure.
    fail_fast : end at the first failure, instead of going on with the other regions.
    """

    shared: Shared
    ledger: Ledger
    state: State
    numbers: Sequence[int]
    retries: int = 0
    fail_fast: bool = False
    bar: Progress = field(default_factory=lambda: Progress(0, "none"))
    stats: Stats = field(default_factory=Stats)
    encoded_bytes: int = 0
    voxels: int = 0
    regions_done: int = 0
    failures: dict[int, VolpatchError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        site = self.shared.site
        self.state.refresh()
        self.before = self.state.n_done
        self.peaks = {os.getpid(): 0}
        self.log = Recorder(site.ledger, site.disk)
        self._again: deque[Task] = deque()
        self._new = self._pending()
        self._deaths = 0

    @property
    def share(self) -> float:
        """The part of all regions that is left for this run."""
        n, status = self.numbers, self.state.status
        if isinstance(n, range):
            left = status.count(n, lambda states: states < DONE)
        else:
            left = sum(not self.state.is_done(number) for number in n)
        return left / max(1, len(status))

    def _pending(self) -> Iterator[Task]:
        for number in self.numbers:
            if self.state.is_done(number):
                continue
            self.state.refresh(at_most_every=REFRESH_SECONDS)
            if not self.state.is_done(number):
                yield self.task(number)

    def task(self, number: int, attempt: int = 1) -> Task:
        """What is still to be computed of a region."""
        lead, box = self.shared.plan.region_box(number)
        return Task(number, lead, missing_box(self.shared, number, self.state) or box, attempt)

    def more(self) -> Task | None:
        """The next task; None when there is none left."""
        if self._again:
            self.state.refresh()
            task = self._again.popleft()
            return self.task(task.region, task.attempt)
        return next(self._new, None)

    def hear(self, event: Event) -> None:
        """Take in what became of a task, or how far one is."""
        match event:
            case Ticked(patches=patches):
                self.bar.add(patches)
            case Done(task=task, outcome=outcome):
                self._done(task, outcome)
            case Failed(task=task, error=error):
                self._failed(task, error)

    def _done(self, task: Task, outcome: Outcome) -> None:
        self._deaths = 0
        self.failures.pop(task.region, None)
        self.stats += outcome.stats
        self.encoded_bytes += outcome.encoded_bytes
        self.voxels += task.box.size * (self.shared.plan.blending.out_channels or 1)
        self.regions_done += 1
        self.peaks[outcome.process] = max(outcome.peak_bytes, self.peaks.get(outcome.process, 0))

    def _failed(self, task: Task, error: BaseException) -> None:
        """Try again, or note the failure and go on; raise what no other region survives."""
        if not isinstance(error, SURVIVED):
            raise error
        self.log.write(
            "failed",
            task.region,
            attempt=task.attempt,
            error=f"{type(error).__name__}: {error}",
            traceback=traceback_text(error)[-20_000:],
        )
        if self.fail_fast:
            raise error
        if isinstance(error, WorkerDiedError):
            self._deaths += 1
            if self._deaths > self.shared.plan.running + MAX_DEATHS:
                raise RunError(
                    f"{self._deaths} workers died one after the other, and no region was "
                    f"finished between: {error}"
                ) from error
        if task.attempt <= self.retries:
            self._again.append(Task(task.region, task.lead, task.box, task.attempt + 1))
        else:
            self.failures[task.region] = error

    def compute(self, pool: Pool) -> None:
        """Compute all that is asked for and not done.

        Raises
        ------
        IncompleteError
            Some regions failed; the others are done.
        """
        pool.tasks(self.more, self.shared, self.hear, self.shared.plan.running)
        self.state.refresh()
        self.bar.close()
        if self.failures:
            raise self._incomplete()

    def _incomplete(self) -> IncompleteError:
        numbers = sorted(self.failures)
        first = self.failures[numbers[0]]
        count = f"{len(numbers)} of {self.ledger.file.n_regions} regions failed"
        error = IncompleteError(
            f"{count} ({show_numbers(numbers, LISTED)}); all others that were asked for are done "
            f"and kept. Region {numbers[0]}: {first}. Remove the cause, then `volpatch retry "
            f"{self.shared.plan.target}`, or the same run again, computes what is missing"
        )
        error.__cause__ = first
        return error

    @property
    def peak_bytes(self) -> int:
        """The most memory that all processes of this run have held, added up."""
        own = max(self.peaks[os.getpid()], machine.peak_bytes())
        return own + sum(n for pid, n in self.peaks.items() if pid != os.getpid())


def missing_box(shared: Shared, number: int, state: State) -> Box | None:
    """The smallest box of whole write units that holds all a region lacks; None: all of it."""
    recorded = state.recorded(number)
    if not len(recorded):
        return None
    plan, spec = shared.plan, shared.spec
    units = units_of(plan, spec, number)
    lacking = np.ones([len(r) for r in units], dtype=bool)
    places = np.unravel_index(recorded, spec.unit_grid)
    lacking[tuple(p - r.start for p, r in zip(places, units, strict=True))] = False
    if not lacking.any():
        return None
    _, box = plan.region_box(number)
    at = [plan.out_axes.index(axis) for axis in plan.layout.patched]
    others = [tuple(i for i in range(lacking.ndim) if i != axis) for axis in at]
    found = [np.flatnonzero(lacking.any(axis=rest)) for rest in others]
    own = [units[i] for i in at]
    first = [
        (r.start + int(f[0])) * u + b
        for r, f, u, b in zip(own, found, plan.unit, plan.box.start, strict=True)
    ]
    last = [
        (r.start + int(f[-1]) + 1) * u + b
        for r, f, u, b in zip(own, found, plan.unit, plan.box.start, strict=True)
    ]
    stops = (min(stop, end) for stop, end in zip(last, box.stop, strict=True))
    return Box(tuple(first), tuple(stops))


def publish_if_done(run: Run, work: Output, *, whole: bool) -> bool:
    """Publish if all regions of the plan are done, by whomever; tells whether it is published.

    Parameters
    ----------
    whole : whether all regions were asked for, so that a gap is an error.
    """
    file = run.ledger.file
    if run.state.n_done < file.n_regions and not whole:
        return work.is_published(file.id)
    work.publish(run.ledger)
    return True
