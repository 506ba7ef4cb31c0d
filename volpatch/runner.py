"""From plan to finished output: hand regions to workers, gather what they did, publish.

Threads share one process, and suit functions that leave the interpreter's lock alone;
processes suit those that hold it. Either way a region is one idempotent task, and no
task needs another's result. After an error or an interrupt nothing more is written: the
workers are told to stop, and a region asks before each write.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from volpatch import machine
from volpatch.blender import PHASES, Stats
from volpatch.errors import RunError, SettingError, VolpatchError
from volpatch.forms import show_bytes
from volpatch.html import table_of_text
from volpatch.planner import CHUNKS_IN_FLIGHT, NAME_WIDTH, Plan
from volpatch.progress import Progress, show_seconds
from volpatch.region import Stopped
from volpatch.storage.opening import reading_limits
from volpatch.storage.puts import Durability
from volpatch.storage.source import Source
from volpatch.storage.target import TargetSpec, WorkTree
from volpatch.work import Functions, Outcome, Tick, Trial, Worker

# how long an interrupted run waits for a call of the user's function to come back
GRACE_SECONDS = 5.0
POLL_SECONDS = 0.1
Done = Callable[[int, Outcome], None]


class Pool(Protocol):
    """Workers of one kind."""

    def one(self, method: str, *args: Any) -> Any:
        """Call a method of one worker, and wait for it."""
        ...

    def regions(
        self, numbers: range, args: tuple[Any, ...], done: Done, tick: Tick, workers: int
    ) -> None:
        """Compute all regions; the first error stops the others and is raised."""
        ...

    def close(self) -> None:
        """End the workers. Nothing is written by them afterwards."""
        ...


class Threads:
    """Worker threads in this process."""

    def __init__(self, functions: Functions, source: Source) -> None:
        self._worker = Worker(functions, source)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def one(self, method: str, *args: Any) -> Any:
        return getattr(self._worker, method)(*args)

    def regions(
        self, numbers: range, args: tuple[Any, ...], done: Done, tick: Tick, workers: int
    ) -> None:
        told: queue.SimpleQueue[tuple[str, Any, Any]] = queue.SimpleQueue()
        todo: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        upcoming = iter(numbers)
        for _ in range(workers):
            todo.put(next(upcoming, None))

        def work() -> None:
            try:
                while (number := todo.get()) is not None:
                    outcome = self._worker.region(
                        number, *args, tick=lambda n: told.put(("tick", n, None)), stop=self._stop
                    )
                    told.put(("done", number, outcome))
            except Stopped:
                pass
            except BaseException as error:
                told.put(("error", error, None))

        # daemons: an interrupted run must not wait for a call that never comes back
        self._threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()
        left = len(numbers)
        while left:
            with suppress(queue.Empty):
                what, first, second = told.get(timeout=POLL_SECONDS)
                if what == "error":
                    raise first
                if what == "tick":
                    tick(first)
                else:
                    left -= 1
                    todo.put(next(upcoming, None))
                    done(first, second)

    def close(self) -> None:
        self._stop.set()
        until = time.monotonic() + GRACE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))


class Processes:
    """Worker processes, started afresh so that no lock or thread is inherited."""

    def __init__(self, functions: Functions, source: Source, workers: int) -> None:
        try:
            payload = pickle.dumps((functions, source))
        except Exception as error:
            raise SettingError(
                f"the function cannot be sent to worker processes ({error}); define it in a "
                f"module of its own, or use backend='threads'"
            ) from error
        context = multiprocessing.get_context("spawn")
        self._links: dict[Connection, multiprocessing.process.BaseProcess] = {}
        with _without_interrupts():
            for _ in range(workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, payload), daemon=True)
                process.start()
                theirs.close()
                self._links[ours] = process

    def one(self, method: str, *args: Any) -> Any:
        link = next(iter(self._links))
        link.send((method, args, {}))
        while True:
            what, value = self._answer(link)
            if what == "done":
                return value

    def regions(
        self, numbers: range, args: tuple[Any, ...], done: Done, tick: Tick, workers: int
    ) -> None:
        todo = iter(numbers)
        busy: dict[Connection, int] = {}

        def feed(link: Connection) -> None:
            number = next(todo, None)
            busy.pop(link, None)
            if number is not None:
                busy[link] = number
                link.send(("region", (number, *args), {"ticks": True}))

        for link in list(self._links)[workers:]:  # the plan needs fewer than were started
            self._end(link)
        for link in list(self._links):
            feed(link)
        while busy:
            ready = wait(list(busy), timeout=POLL_SECONDS)
            for link in [link for link in busy if link in ready]:
                what, value = self._answer(link)
                if what == "tick":
                    tick(value)
                else:
                    done(busy[link], value)
                    feed(link)

    def _answer(self, link: Connection) -> tuple[str, Any]:
        try:
            what, value = link.recv()
        except (EOFError, ConnectionError):
            process = self._links[link]
            process.join(GRACE_SECONDS)
            raise RunError(
                f"a worker process died (exit code {process.exitcode}): it was killed, ran out of "
                f"memory, or the function ended its process. Fewer workers, or a larger "
                f"func_memory, leave more room"
            ) from None
        if what == "error":
            error, text = value
            error.add_note(f"in a worker process:\n{text}")
            raise error
        return what, value

    def close(self) -> None:
        for link in list(self._links):
            self._end(link)

    def _end(self, link: Connection) -> None:
        process = self._links.pop(link)
        process.kill()
        process.join()
        link.close()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes started inside never see Ctrl-C, not even while they import."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # started by the first process otherwise, and unblocks the signal on its way
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(link: Connection, payload: bytes) -> None:
    """Life of a worker process: answer calls until the line goes dead."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is asked, and ends us
    for stream in (sys.stdout, sys.stderr):  # what a function prints must not die with us
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    worker: Worker | None = None
    with reading_limits(CHUNKS_IN_FLIGHT):
        while True:
            try:
                method, args, options = link.recv()
            except (EOFError, OSError):
                return
            try:
                if worker is None:
                    worker = Worker(*pickle.loads(payload))
                if options.get("ticks"):
                    value = getattr(worker, method)(*args, tick=lambda n: link.send(("tick", n)))
                else:
                    value = getattr(worker, method)(*args)
                link.send(("done", value))
            except BaseException as error:
                link.send(("error", (_sendable(error), traceback.format_exc())))


def _sendable(error: BaseException) -> BaseException:
    """The error itself where it survives the journey, else its words."""
    if not isinstance(error, VolpatchError):
        return RunError(f"{type(error).__name__}: {error}")
    return type(error)(*error.args)


@dataclass
class RunReport:
    """What a finished run did. `print(report)` for people, `to_json()` for programs.

    Attributes
    ----------
    seconds : wall time; `phases` sums the time of all workers, per phase.
    clipped : values that did not fit the output's dtype, and were clipped to it.
    peak_bytes, predicted_bytes : memory of all processes of the run, at most.
    encoded_bytes : size of the output's objects.
    """

    target: str
    shape: tuple[int, ...]
    dtype: str
    seconds: float
    regions: int
    workers: int
    backend: str
    redundancy: float
    predicted_bytes: int
    peak_bytes: int
    stats: Stats = field(default_factory=Stats)
    encoded_bytes: int = 0
    raw_bytes: int = 0
    source_itemsize: int = 1

    @property
    def voxels(self) -> int:
        """Voxels of the output, channels not counted apart."""
        total = 1
        for n in self.shape:
            total *= n
        return total

    @property
    def voxels_per_second(self) -> float:
        return self.voxels / max(self.seconds, 1e-9)

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "seconds": self.seconds,
            "patches": self.stats.patches,
            "calls": self.stats.calls,
            "regions": self.regions,
            "workers": self.workers,
            "backend": self.backend,
            "redundancy": self.redundancy,
            "voxels_per_second": self.voxels_per_second,
            "bytes_read": self.stats.voxels_read * self.source_itemsize,
            "bytes_written": self.raw_bytes,
            "encoded_bytes": self.encoded_bytes,
            "clipped": self.stats.clipped,
            "peak_bytes": self.peak_bytes,
            "predicted_bytes": self.predicted_bytes,
            "phase_seconds": dict(self.stats.seconds),
        }

    def _repr_html_(self) -> str:
        return table_of_text("Run", repr(self), NAME_WIDTH)

    def __repr__(self) -> str:
        busy = sum(self.stats.seconds.values()) or 1.0
        spent = [(name, self.stats.seconds[name]) for name in PHASES]
        phases = ", ".join(f"{name} {show_seconds(s)} ({s / busy:.0%})" for name, s in spent)
        shape = " x ".join(map(str, self.shape))
        return "\n".join(
            [
                f"wrote     {self.target}: {shape} {self.dtype}, {show_bytes(self.raw_bytes)} in "
                f"{show_bytes(self.encoded_bytes)}",
                f"took      {show_seconds(self.seconds)}, "
                f"{self.voxels_per_second / 1e6:.1f} Mvoxel/s; {self.stats.patches:,} patches in "
                f"{self.stats.calls:,} calls, {self.regions:,} regions, "
                f"{self.workers} {self.backend}",
                f"spent     {phases}",
                f"memory    {show_bytes(self.peak_bytes)} at the peak, "
                f"{show_bytes(self.predicted_bytes)} predicted",
                f"clipped   {self.stats.clipped:,} values",
            ]
        )


def execute(
    draft: Plan,
    functions: Functions,
    source: Source,
    *,
    settle: Callable[[Plan, Trial], tuple[Plan, TargetSpec]],
    overwrite: bool = False,
    durability: Durability = "full",
    announce: Callable[[Plan], None] = lambda plan: None,
    progress: str = "auto",
) -> RunReport:
    """Try the function, settle the plan, compute all regions, publish the output.

    Parameters
    ----------
    draft : the plan as far as it is known before the function was called.
    settle : makes the final plan, and what the output looks like, of what a trial told.
    announce : is shown the final plan before the first region starts.
    """
    begin = time.perf_counter()
    machine.forget_peak()
    work = WorkTree(draft.target or "", durability=durability)
    with (
        work.claimed(),
        reading_limits(CHUNKS_IN_FLIGHT),
        _pool(draft, functions, source) as pool,
    ):
        plan, spec = settle(draft, pool.one("trial", draft))
        announce(plan)
        bar = Progress(plan.patches_computed, progress)
        work.prepare(spec, overwrite=overwrite)
        stats, encoded, peaks = Stats(), 0, {os.getpid(): 0}

        def done(number: int, outcome: Outcome) -> None:
            nonlocal stats, encoded
            stats += outcome.stats
            encoded += outcome.encoded_bytes
            peaks[outcome.process] = max(outcome.peak_bytes, peaks.get(outcome.process, 0))

        pool.regions(range(plan.n_regions), (plan, spec, durability), done, bar.add, plan.running)
        bar.close()
        work.publish(spec)
    peaks[os.getpid()] = max(peaks[os.getpid()], machine.peak_bytes())
    return RunReport(
        target=str(work.target),
        shape=spec.shape,
        dtype=spec.dtype,
        seconds=time.perf_counter() - begin,
        regions=plan.n_regions,
        workers=plan.running,
        backend=plan.backend,
        redundancy=plan.redundancy,
        predicted_bytes=plan.peak,
        peak_bytes=sum(peaks.values()),
        stats=stats,
        encoded_bytes=encoded,
        raw_bytes=plan.bytes_written,
        source_itemsize=source.dtype.itemsize,
    )


@contextmanager
def _pool(draft: Plan, functions: Functions, source: Source) -> Iterator[Pool]:
    pool: Pool = (
        Threads(functions, source)
        if draft.backend == "threads"
        else Processes(functions, source, draft.workers)
    )
    try:
        yield pool
    finally:
        pool.close()
