"""What volpatch raises on purpose. Anything else that escapes is a defect of ours.

Every message says what is wrong, why (with the caller's own numbers) and what to do.
"""

from __future__ import annotations

import signal
import threading
import traceback

MOST_WORDS = 2_000  # characters of a user's error, and of a line of a traceback, that are repeated


class VolpatchError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command returns."""

    exit_code = 3


class GridError(VolpatchError, ValueError):
    """Patch, stride, overlap, edge or roi that cannot be laid over the volume."""


class SettingError(VolpatchError, ValueError):
    """A setting that makes no sense, alone or together with another one."""


class MemoryLimitError(SettingError):
    """Nothing fits under the memory limit; the message names a setting that does."""


class SourceError(VolpatchError):
    """An input that is missing, damaged, or of a kind volpatch does not read."""


class TargetError(VolpatchError):
    """An output place that cannot, or must not, be written."""


class FunctionError(VolpatchError, RuntimeError):
    """The user's function raised or gave back something unusable; names the patch."""


class RunError(VolpatchError, RuntimeError):
    """The run broke down for a reason outside of its settings (disk full, a worker died)."""

    exit_code = 1


class IncompleteError(RunError):
    """Some regions failed, or some are missing; the rest is done and kept."""

    exit_code = 4


class ClippedWarning(UserWarning):
    """Values did not fit a result's dtype: they were clipped to it, and NaN became 0."""


def said(error: BaseException) -> str:
    """The words of somebody's error, if not too many: they go into messages and records."""
    try:
        text = str(error) or "no message"
    except Exception:
        return "its message cannot be shown"
    return text if len(text) <= MOST_WORDS else f"{text[:MOST_WORDS]}..."


def interrupts(error: BaseException) -> bool:
    """Whether an error is a signal's, and not the doing of the code that it came up in.

    Signals reach the main thread alone, and one whose interrupts are not ignored.
    """
    if not isinstance(error, KeyboardInterrupt):
        return False
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    there = threading.current_thread() is threading.main_thread()
    return there and not (ignored and type(error) is KeyboardInterrupt)


def blamed(error: BaseException, what: str, where: str = "") -> FunctionError:
    """What to raise where the user's own code raised; an interrupt is raised again as it is.

    Parameters
    ----------
    what : the code, as in "setup make_model".
    where : what it was given, as in "on patch (0, 0, 1)".
    """
    if interrupts(error):
        raise error
    place = f" {where}" if where else ""
    return FunctionError(f"{what} raised {type(error).__name__}{place}: {said(error)}")


def traceback_text(error: BaseException) -> str:
    """The traceback with its causes; lines are cut short, as a message may hold megabytes."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return "\n".join(n if len(n) <= MOST_WORDS else f"{n[:MOST_WORDS]}..." for n in lines)
