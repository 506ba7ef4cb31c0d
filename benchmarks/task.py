"""What a contender does in the process that measures it."""

from __future__ import annotations

import gc
import importlib
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from volpatch.core import resources as machine

Figures = dict[str, float | str]


class CannotError(Exception):
    """A contender cannot do a case; the message is what its cell says."""


def nothing(*_: Any) -> None:
    return None


@dataclass
class Task:
    """One contender on one case, with its data at hand.

    Attributes
    ----------
    run : what is timed.
    warm : the same at a tiny size, before anything is timed; compiles and imports.
    check : figures about the result of a run, among them `error`, the largest difference
        from what the result should be.
    clean : takes away what a run left, after each.
    """

    run: Callable[[], Any]
    warm: Callable[[], Any] = nothing
    check: Callable[[Any], Figures] = lambda result: {}
    clean: Callable[[], None] = nothing


def reason(error: BaseException) -> str:
    """Why a contender has no numbers, for its cell."""
    if isinstance(error, CannotError):
        return str(error)
    if isinstance(error, ImportError):
        extra = "; pins numpy<2" if error.name == "patchify" else ""
        return f"not installed ({error.name}{extra})"
    return f"failed: {type(error).__name__}: {without_paths(str(error))[:120]}"


def without_paths(text: str) -> str:
    """One line without the places of this machine, as tables are for others."""
    return " ".join(word for word in text.split() if "/" not in word)


class Bench:
    """A task, made, warmed and measured in this process.

    The peak includes the interpreter and all libraries; `before` is what was there, with
    the data, when the first run began.
    """

    def __init__(self, call: str, words: Mapping[str, Any], *, warm: bool = True) -> None:
        self.call, self.words, self.warm = call, words, warm
        self.task: Task | None = None
        self.result: Any = None
        self.before = 0

    def start(self) -> Figures:
        """Make the task and warm it up, or say why not."""
        module, name = self.call.split(":")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.task = getattr(importlib.import_module(module), name)(**self.words)
                if self.warm:
                    self.task.warm()
        except Exception as error:
            return {"why": reason(error)}
        return {}

    def run(self) -> Figures:
        """Seconds, processor seconds, and peak bytes of one run."""
        assert self.task is not None
        self.result = None
        gc.collect()
        machine.forget_peak()
        self.before = self.before or machine.resident_bytes()
        begin, used = time.perf_counter(), time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.result = self.task.run()
        except Exception as error:
            return {"why": reason(error)}
        seconds, cores = time.perf_counter() - begin, time.process_time() - used
        return {
            "seconds": seconds,
            "cpu": cores,
            "peak": machine.peak_bytes(),
            "before": self.before,
        }

    def check(self) -> Figures:
        assert self.task is not None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self.task.check(self.result)
        except Exception as error:
            return {"why": "wrong result: " + reason(error)}

    def clean(self) -> Figures:
        assert self.task is not None
        self.result = None
        self.task.clean()
        return {}

    def close(self) -> None:
        self.task = self.result = None
