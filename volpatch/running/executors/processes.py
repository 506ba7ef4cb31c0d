"""Worker processes of this machine, for functions that hold the interpreter's lock.

They are killed at the end, with whatever they are at.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait

from volpatch.core import resources as machine
from volpatch.core.box import Box
from volpatch.core.errors import RunError, SettingError, VolpatchError, said, traceback_text
from volpatch.planning.plan import Plan
from volpatch.planning.source import CHUNKS_IN_FLIGHT
from volpatch.running.inflight import in_flight
from volpatch.running.pool import Done, Failed, Listener, More, Ticked, WorkerDiedError
from volpatch.running.worker import Functions, Outcome, Shared, Task, Trial, Worker
from volpatch.storage.open import reading_limits
from volpatch.storage.volume import Source

# how long a worker that said nothing more has to end
GRACE_SECONDS = 5.0
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Raised:
    """A call ended with an error; where it came from, in words."""

    error: BaseException
    text: str


@dataclass(frozen=True, slots=True)
class Died:
    """A worker will never say anything again."""

    exit_code: int | None


Request = Plan | tuple[Task, Shared]  # a trial, or a task
Said = Ticked | Trial | Outcome | Raised | Died


@contextmanager
def start(plan: Plan, functions: Functions, source: Source) -> Iterator[Processes]:
    """As `volpatch.running.pool.Executor`."""
    pool = Processes(functions, source, plan.workers)
    try:
        yield pool
    finally:
        pool.close()


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

    def trial(self, plan: Plan) -> Trial:
        """Done by one worker, and waited for."""
        link = next(iter(self._links))
        link.send(plan)
        while True:
            match self._answer(link):
                case Trial() as trial:
                    return trial
                case Raised(error=error):
                    raise error
                case Died(exit_code=code):
                    raise WorkerDiedError(
                        f"{_died(code)}. It came as far as the first call of the function; a "
                        f"script that uses processes must call run below "
                        f"`if __name__ == '__main__':`"
                    )

    def tasks(self, more: More, shared: Shared, listener: Listener, workers: int) -> None:
        busy: dict[Connection, Task] = {}

        def feed(link: Connection | None) -> None:
            task = more()
            if task is None:
                return
            link = self._start() if link is None else link
            busy[link] = task
            with suppress(ConnectionError):  # it died idle, which its answer will tell
                link.send((task, shared))

        for link in list(self._links)[workers:]:  # the plan needs fewer than were started
            self._end(link)
        for link in list(self._links):
            feed(link)
        while busy:
            ready = wait(list(busy), timeout=POLL_SECONDS)
            for link in [link for link in busy if link in ready]:
                match self._answer(link):
                    case Ticked() as ticked:
                        listener(ticked)
                    case Outcome() as outcome:
                        listener(Done(busy.pop(link), outcome))
                        feed(link)
                    case Raised(error=error):
                        listener(Failed(busy.pop(link), error))
                        feed(link)
                    case Died(exit_code=code):
                        task = busy.pop(link)
                        death = _death(code, shared, task, self._links[link].pid)
                        self._end(link)
                        listener(Failed(task, death))
                        feed(None)

    def _answer(self, link: Connection) -> Said:
        """What a worker says next."""
        try:
            answer: Said = link.recv()
        except (EOFError, ConnectionError):
            process = self._links[link]
            process.join(GRACE_SECONDS)
            return Died(process.exitcode)
        if isinstance(answer, Raised):
            answer.error.add_note(f"in a worker process:\n{answer.text}")
        return answer

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
                asked: Request = link.recv()
            except (EOFError, OSError):
                return
            try:
                if worker is None:
                    worker = Worker(*pickle.loads(payload))
                if isinstance(asked, Plan):
                    link.send(worker.trial(asked))
                else:
                    task, shared = asked
                    link.send(worker.region(task, shared, tick=lambda n: link.send(Ticked(n))))
            except BaseException as error:
                link.send(Raised(_sendable(error), traceback_text(error)))


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
