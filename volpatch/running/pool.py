"""Workers, whatever they are: what they are asked, and what they tell.

    scheduler --Task-->  pool  --> workers
              <--Event--       <--

Each kind lies in a file of its own in `executors`, under the name that `backend=` gives it: to
add one is to write that file, with `start(plan, functions, source)`, and to name it in
`core.options.BACKENDS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, cast

from volpatch.core.errors import RunError
from volpatch.planning.plan import Plan
from volpatch.planning.source import CHUNKS_IN_FLIGHT
from volpatch.running.worker import Functions, Outcome, Shared, Task, Trial
from volpatch.storage.open import reading_limits
from volpatch.storage.volume import Source

More = Callable[[], Task | None]


class WorkerDiedError(RunError):
    """A worker process ended without a word."""


@dataclass(frozen=True, slots=True)
class Ticked:
    """Patches were computed."""

    patches: int


@dataclass(frozen=True, slots=True)
class Done:
    """A task is."""

    task: Task
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Failed:
    """A task did, in the user's function or elsewhere."""

    task: Task
    error: BaseException


Event = Ticked | Done | Failed
Listener = Callable[[Event], None]  # what it raises ends the run


class Pool(Protocol):
    """Workers of one kind."""

    def trial(self, plan: Plan) -> Trial:
        """What one worker learns of the function, see `Worker.trial`."""
        ...

    def tasks(self, more: More, shared: Shared, listener: Listener, workers: int) -> None:
        """Compute what `more` gives, until it gives None and all is done or has failed."""
        ...


class Executor(Protocol):
    """A module of `executors`."""

    def start(
        self, plan: Plan, functions: Functions, source: Source
    ) -> AbstractContextManager[Pool]:
        """Start what can compute. On the way out it ends, and writes nothing afterwards."""
        ...


@contextmanager
def open_pool(plan: Plan, functions: Functions, source: Source) -> Iterator[Pool]:
    """The workers that a plan asks for, ended on the way out."""
    module = importlib.import_module(f"volpatch.running.executors.{plan.backend}")
    with (
        reading_limits(CHUNKS_IN_FLIGHT),
        cast(Executor, module).start(plan, functions, source) as pool,
    ):
        yield pool
