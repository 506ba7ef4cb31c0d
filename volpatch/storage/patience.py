"""Wait for faults of a disk that pass by themselves: a share that is busy, a signal between."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")
# what a busy disk or a server that restarts may say, and take back
PASSING = frozenset(
    {errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ETIMEDOUT, errno.ESTALE, errno.ENOBUFS}
)
PATIENCE_SECONDS = (0.05, 0.2, 0.8, 3.2)


def patiently(call: Callable[[], _T]) -> _T:
    """What `call` gives; a few tries, more and more apart, where the fault may pass."""
    for seconds in PATIENCE_SECONDS:
        try:
            return call()
        except OSError as error:
            if error.errno not in PASSING:
                raise
        time.sleep(seconds)
    return call()
