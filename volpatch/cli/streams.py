"""What goes to stdout and to stderr, and what becomes of it when nobody listens."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from errno import EPIPE
from io import TextIOWrapper

import click

from volpatch.core.errors import (
    FunctionError,
    IncompleteError,
    RunError,
    SettingError,
    VolpatchError,
    traceback_text,
)

OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def open_streams() -> None:
    """Open streams that the process was started without, on the null device.

    The next files to be opened would take their numbers, and be written into.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
        elif name == "stdout" and isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be any bytes


def tell_error(message: str, details: str = "") -> None:
    from volpatch.core.parse import printable

    with suppress(OSError):  # nobody listens: the exit code tells
        click.echo(f"volpatch: {printable(' '.join(message.split()))}", err=True)
        if details:
            click.echo(details, err=True)


# -- what to say about an error ------------------------------------------------------------


def details(error: VolpatchError) -> str:
    """The user's own frames where their function failed; a worker's whole traceback if we did."""
    chained = "\nThe above exception was the direct cause of the following exception:\n"
    if isinstance(error, IncompleteError) and isinstance(error.__cause__, VolpatchError):
        return details(error.__cause__)
    note = "\n".join(getattr(error, "__notes__", ())).partition("\n")[2].rstrip()
    if isinstance(error, RunError):
        deliberate = note.rpartition("\n")[2].startswith("volpatch.core.errors.")
        return "" if deliberate else note
    if not isinstance(error, FunctionError | SettingError):
        return ""
    if error.__cause__ is not None:
        return _without_our_frames(traceback_text(error.__cause__))
    return _without_our_frames(note.rpartition(chained)[0])


def _without_our_frames(text: str) -> str:
    """A traceback's text without the frames of volpatch; empty if there are no others."""
    kept: list[str] = []
    keep, found = True, False
    for line in text.rstrip().splitlines():
        if line.startswith('  File "'):
            path = line.split('"')[1]
            keep = not (path.startswith((OURS, "<frozen")) or "/importlib/" in path)
            found = found or keep
        elif not line.startswith("    "):
            keep = True
        if keep:
            kept.append(line)
    return "\n".join(kept) if found else ""


@dataclass
class Result:
    """The stdout that a command was given: whoever reads it may leave, and the work goes on."""

    number: int
    problem: OSError | None = None

    def tell(self, text: str) -> None:
        left = f"{text}\n".encode(errors="backslashreplace")
        try:
            while left and self.problem is None:
                left = left[os.write(self.number, left) :]
        except OSError as error:
            self.problem = error


@contextmanager
def result_stream() -> Iterator[Result]:
    """The stdout of this process for our result alone; all other prints go to stderr inside."""
    sys.stdout.flush()
    result = Result(os.dup(1))
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield result
    finally:
        os.dup2(result.number, 1)
        os.close(result.number)
    if result.problem is not None and result.problem.errno != EPIPE:
        raise RunError(
            f"all is done, but the report could not be written to stdout: {result.problem.strerror}"
        )


def answer(text: str) -> None:
    """Print what a command was asked for; whoever reads it may have left."""
    try:
        click.echo(text)
    except BrokenPipeError:
        pass
    except OSError as error:
        raise RunError(f"the answer could not be written to stdout: {error.strerror}") from error
