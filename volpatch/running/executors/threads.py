"""Worker threads of this process, for functions that leave the interpreter's lock alone.

After `close` nothing more is written: the threads are told to stop, and ask before each write.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress

from volpatch.compute.stream import Stopped
from volpatch.planning.plan import Plan
from volpatch.running.pool import Done, Event, Failed, Listener, More, Ticked
from volpatch.running.worker import Functions, Shared, Task, Trial, Worker
from volpatch.storage.volume import Source

# how long an interrupted run waits for a call of the user's function to come back
GRACE_SECONDS = 5.0
POLL_SECONDS = 0.1


@contextmanager
def start(plan: Plan, functions: Functions, source: Source) -> Iterator[Threads]:
    """As `volpatch.running.pool.Executor`; threads start with the tasks."""
    pool = Threads(functions, source)
    try:
        yield pool
    finally:
        pool.close()


class Threads:
    """Worker threads in this process."""

    def __init__(self, functions: Functions, source: Source) -> None:
        self._worker = Worker(functions, source)
        self._stop = threading.Event()
        self._todo: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._told: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def trial(self, plan: Plan) -> Trial:
        """Called in a thread of its own: an interrupt ends the waiting, and is never the call's."""
        call: Future[Trial] = Future()

        def work() -> None:
            try:
                call.set_result(self._worker.trial(plan))
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
                event = self._told.get(timeout=POLL_SECONDS)
                listener(event)
                if not isinstance(event, Ticked):
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
                    task, shared, tick=lambda n: self._told.put(Ticked(n)), stop=self._stop
                )
            except Stopped:
                return
            except BaseException as error:
                self._told.put(Failed(task, error))
            else:
                self._told.put(Done(task, outcome))

    def close(self) -> None:
        self._stop.set()
        until = time.monotonic() + GRACE_SECONDS
        for _ in self._threads:
            self._todo.put(None)
        for thread in self._threads:
            if thread.is_alive():  # one that an interrupt kept from starting finds the stop set
                thread.join(max(0.0, until - time.monotonic()))
