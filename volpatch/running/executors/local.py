"""Workers of one machine: threads of this process, or processes of their own.

Threads share one process, and suit functions that leave the interpreter's lock alone;
processes suit those that hold it. Either way a task needs no other task's result. After
`close` nothing more is written: the workers are told to stop, and ask before each write.
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
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from volpatch.compute.stream import Stopped
from volpatch.core import resources as machine
from volpatch.core.errors import RunError, SettingError, VolpatchError, said, traceback_text
from volpatch.core.grid import Box
from volpatch.planning.plan import CHUNKS_IN_FLIGHT, Plan
from volpatch.running.inflight import in_flight
from volpatch.running.worker import Functions, Outcome, Shared, Task, Worker
from volpatch.storage.open import reading_limits
from volpatch.storage.volume import Source

# how long an interrupted run waits for a call of the user's function to come back
GRACE_SECONDS = 5.0
POLL_SECONDS = 0.1
More = Callable[[], Task | None]


class WorkerDiedError(RunError):
    """A worker process ended without a word."""


class Listener(Protocol):
    """Is told what becomes of tasks; what it raises ends the run."""

    def tick(self, patches: int) -> None: ...
    def done(self, task: Task, outcome: Outcome) -> None: ...
    def failed(self, task: Task, error: BaseException) -> None: ...


class Pool(Protocol):
    """Workers of one kind."""

    def one(self, method: str, *args: Any) -> Any:
        """Call a method of one worker, and wait for it."""
        ...

    def tasks(self, more: More, shared: Shared, listener: Listener, workers: int) -> None:
        """Compute what `more` gives, until it gives None and all is done or has failed."""
        ...

    def close(self) -> None:
        """End the workers. Nothing is written by them afterwards."""
        ...


class Threads:
    """Worker threads in this process."""

    def __init__(self, functions: Functions, source: Source) -> None:
        self._worker = Worker(functions, source)
        self._stop = threading.Event()
        self._todo: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._told: queue.SimpleQueue[tuple[str, Any, Any]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def one(self, method: str, *args: Any) -> Any:
        """Called in a thread of its own: an interrupt ends the waiting, and is never the call's."""
        call: Future[Any] = Future()

        def work() -> None:
            try:
                call.set_result(getattr(self._worker, method)(*args))
            except BaseException as error:
                call.set_exception(error)

        self._threads = [threading.Thread(target=work, daemon=True)]
        self._threads[0].start()
        return call.result()

    def tasks(self, more: More, shared: Shared, listener: Listener, workers: int) -> None:
        busy = 0
        for _ in range(workers):
            busy += self._feed(more)
        # daemons: an interrupted run must not wait for a call that never comes back
        self._threads = [
            threading.Thread(target=self._work, args=(shared,), daemon=True) for _ in range(busy)
        ]
        for thread in self._threads:
            thread.start()
        while busy:
            with suppress(queue.Empty):
                what, first, second = self._told.get(timeout=POLL_SECONDS)
                if what == "tick":
                    listener.tick(first)
                    continue
                getattr(listener, what)(first, second)
                busy -= not self._feed(more)

    def _feed(self, more: More) -> bool:
        task = more()
        if task is not None:
            self._todo.put(task)
        return task is not None

    def _work(self, shared: Shared) -> None:
        while not self._stop.is_set() and (task := self._todo.get()) is not None:
            try:
                outcome = self._worker.region(
                    task, shared, tick=lambda n: self._told.put(("tick", n, None)), stop=self._stop
                )
            except Stopped:
                return
            except BaseException as error:
                self._told.put(("failed", task, error))
            else:
                self._told.put(("done", task, outcome))

    def close(self) -> None:
        self._stop.set()
        until = time.monotonic() + GRACE_SECONDS
        for _ in self._threads:
            self._todo.put(None)
        for thread in self._threads:
            if thread.is_alive():  # one that an interrupt kept from starting finds the stop set
                thread.join(max(0.0, until - time.monotonic()))


class Processes:
    """Worker processes, started afresh so that no lock or thread is inherited."""

    def __init__(self, functions: Functions, source: Source, workers: int) -> None:
        try:
            self._payload = pickle.dumps((functions, source))
        except Exception as error:
            raise SettingError(
                f"the function cannot be sent to worker processes ({said(error)}); define it in a "
                f"module of its own, or use backend='threads'"
            ) from error
        self._links: dict[Connection, multiprocessing.process.BaseProcess] = {}
        for _ in range(workers):
            self._start()

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        with _without_interrupts():
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, self._payload), daemon=True)
            process.start()
            theirs.close()
            self._links[ours] = process
        return ours

    def one(self, method: str, *args: Any) -> Any:
        link = next(iter(self._links))
        link.send((method, args, {}))
        while True:
            what, value = self._answer(link)
            if what == "died":
                raise WorkerDiedError(
                    f"{_died(value)}. It came as far as the first call of the function; a script "
                    f"that uses processes must call run below `if __name__ == '__main__':`"
                )
            if what == "failed":
                raise value
            if what == "done":
                return value

    def tasks(self, more: More, shared: Shared, listener: Listener, workers: int) -> None:
        busy: dict[Connection, Task] = {}

        def feed(link: Connection | None) -> None:
            task = more()
            if task is None:
                return
            link = self._start() if link is None else link
            busy[link] = task
            with suppress(ConnectionError):  # it died idle, which its answer will tell
                link.send(("region", (task, shared), {"ticks": True}))

        for link in list(self._links)[workers:]:  # the plan needs fewer than were started
            self._end(link)
        for link in list(self._links):
            feed(link)
        while busy:
            ready = wait(list(busy), timeout=POLL_SECONDS)
            for link in [link for link in busy if link in ready]:
                what, value = self._answer(link)
                if what == "tick":
                    listener.tick(value)
                    continue
                task = busy.pop(link)
                if what == "died":
                    death = _death(value, shared, task, self._links[link].pid)
                    self._end(link)
                    listener.failed(task, death)
                    feed(None)
                    continue
                getattr(listener, what)(task, value)
                feed(link)

    def _answer(self, link: Connection) -> tuple[str, Any]:
        """What a worker says next, ("died", exit code) if it never will again."""
        try:
            what, value = link.recv()
        except (EOFError, ConnectionError):
            process = self._links[link]
            process.join(GRACE_SECONDS)
            return "died", process.exitcode
        if what == "error":
            error, text = value
            error.add_note(f"in a worker process:\n{text}")
            return "failed", error
        return what, value

    def close(self) -> None:
        for link in list(self._links):
            self._end(link)

    def _end(self, link: Connection) -> None:
        process = self._links.pop(link)
        process.kill()
        process.join()
        link.close()


def _died(exit_code: int | None) -> str:
    return (
        f"a worker process died (exit code {exit_code}): it was killed, ran out of memory, or the "
        f"function ended its process. Fewer workers, or a larger func_memory, leave more room"
    )


def _death(
    exit_code: int | None, shared: Shared, task: Task, process: int | None
) -> WorkerDiedError:
    """What to say of a dead worker: the patch that was in flight, if it was in a call."""
    for note in in_flight(shared.site.temp, process):
        if note["region"] == task.region:
            box = Box(tuple(note["start"]), tuple(note["stop"]))
            return WorkerDiedError(
                f"{_died(exit_code)}; patch {tuple(note['patch'])} at {box} was in flight"
            )
    return WorkerDiedError(_died(exit_code))


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
    _end_with_parent()
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
                link.send(("error", (_sendable(error), traceback_text(error))))


def _end_with_parent() -> None:
    """End this process when its parent ends, however busy or stuck it is then."""
    machine.end_with_parent()
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:  # for a parent that ended before, and where the kernel does not help
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _sendable(error: BaseException) -> BaseException:
    """The error itself where it survives the journey, else its words."""
    if isinstance(error, MemoryError):
        return MemoryError(*(said(error) for _ in error.args[:1]))
    if not isinstance(error, VolpatchError):
        return RunError(f"{type(error).__name__}: {said(error)}")
    return type(error)(*error.args)


@contextmanager
def open_pool(plan: Plan, functions: Functions, source: Source) -> Iterator[Pool]:
    """The workers that a plan asks for, ended on the way out."""
    with reading_limits(CHUNKS_IN_FLIGHT):
        pool: Pool = (
            Threads(functions, source)
            if plan.backend == "threads"
            else Processes(functions, source, plan.workers)
        )
        try:
            yield pool
        finally:
            pool.close()
