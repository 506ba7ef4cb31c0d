"""A contender in a process of its own: commands on stdin, answers on stdout, as JSON lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.task import Bench, Figures, without_paths

ROOT = Path(__file__).parents[1]
POOLS = ("OMP", "OPENBLAS", "MKL", "NUMBA")


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    job = json.loads(sys.stdin.readline())
    bench = Bench(job["call"], job["words"])
    for line in sys.stdin:
        told = getattr(bench, line.strip())()
        print(json.dumps(told), file=answers, flush=True)


class Apart:
    """`Bench` in a fresh process; what takes longer than `limit` seconds is ended."""

    def __init__(
        self, call: str, words: Mapping[str, Any], threads: int, limit: float | None
    ) -> None:
        self.limit = limit
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.child"],
            cwd=ROOT,
            env={**os.environ, **{f"{pool}_NUM_THREADS": str(threads) for pool in POOLS}},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self._tell(json.dumps({"call": call, "words": dict(words)}))

    def _tell(self, line: str) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            print(line, file=self.process.stdin, flush=True)

    def _ask(self, command: str) -> Figures:
        assert self.process.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            end_tree(self.process.pid)

        timer = threading.Timer(self.limit or threading.TIMEOUT_MAX, end)
        timer.daemon = True
        timer.start()
        self._tell(command)
        line = self.process.stdout.readline()
        timer.cancel()
        if line:
            answer: Figures = json.loads(line)
            return answer
        if late.is_set():
            return {"why": f"over {self.limit:g} s"}
        code = self.process.wait()
        self.errors.seek(0)
        last = self.errors.read().decode(errors="replace").strip().splitlines()[-1:]
        return {
            "why": f"ended with code {code}"
            + "".join(f" ({without_paths(text)[:80]})" for text in last)
        }

    def start(self) -> Figures:
        return self._ask("start")

    def run(self) -> Figures:
        with Watch(self.process.pid) as watch:
            told = self._ask("run")
        if "peak" in told:
            told["peak"] = max(float(told["peak"]), watch.peak)
        return told

    def check(self) -> Figures:
        return self._ask("check")

    def clean(self) -> Figures:
        return self._ask("clean")

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            end_tree(self.process.pid)
            self.process.wait()
        self.process.stdout.close()
        self.errors.close()


def tree(pid: int) -> Iterator[int]:
    """A process and those it started."""
    yield pid
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                for child in (thread / "children").read_text().split():
                    yield from tree(int(child))


def end_tree(pid: int) -> None:
    import signal

    for one in reversed(list(tree(pid))):
        with suppress(OSError):
            os.kill(one, signal.SIGKILL)


def resident(pid: int) -> int:
    with suppress(OSError, IndexError, ValueError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


class Watch:
    """The most memory that the processes of a tree hold together, seen every 20 ms.

    A process without children tells its own peak exactly, so only trees are looked at.
    """

    def __init__(self, pid: int) -> None:
        self.pid, self.peak = pid, 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._done.wait(0.02):
            pids = list(tree(self.pid))
            if len(pids) > 1:
                self.peak = max(self.peak, sum(map(resident, pids)))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


if __name__ == "__main__":
    serve()
