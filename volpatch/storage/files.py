"""Open a file that is one: a named pipe under a file's name keeps whoever opens it for ever."""

from __future__ import annotations

import os
import stat
from typing import BinaryIO

_OTHERS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading, without ever waiting for it.

    Raises
    ------
    OSError
        It cannot be opened, or it is something else; the text says what.
    """
    _check_mode(os.stat(path).st_mode)  # first: opening a device may already do something
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_mode(os.fstat(handle).st_mode)
    except OSError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def _check_mode(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(f"it is {_OTHERS.get(stat.S_IFMT(mode), 'something else')}, not a file")
