"""What volpatch raises on purpose. Anything else that escapes is a defect of ours.

Every message says what is wrong, why (with the caller's own numbers) and what to do.
"""

from __future__ import annotations

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


def traceback_text(error: BaseException) -> str:
    """The traceback with its causes; lines are cut short, as a message may hold megabytes."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return "\n".join(n if len(n) <= MOST_WORDS else f"{n[:MOST_WORDS]}..." for n in lines)
