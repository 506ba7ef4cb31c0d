"""Locks on files that go with their process, however that ends; POSIX systems have them."""

from __future__ import annotations

import sys
from importlib import import_module

from volpatch.core.errors import SettingError


def check_locks() -> None:
    """Refuse to write where there are no such locks: there the rest is untried too.

    Raises
    ------
    SettingError
    """
    try:
        import_module("fcntl")
    except ImportError:
        raise SettingError(
            f"volpatch writes volumes on POSIX systems (Linux, macOS, WSL), and this is "
            f"{sys.platform}; here it computes in memory and lazily (map_patches)"
        ) from None


def lock(handle: int, *, shared: bool = False, wait: bool = False) -> None:
    """Lock an open file until it is closed.

    Parameters
    ----------
    shared : whether others may hold it so too.
    wait : for others to let it go; else BlockingIOError is raised.
    """
    import fcntl

    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    fcntl.flock(handle, how if wait else how | fcntl.LOCK_NB)
