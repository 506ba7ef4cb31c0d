"""Which patch is in the user's function, told where a dead process can no longer tell.

A function can end its process without a word (a crash in compiled code, `os._exit`, the
kernel short of memory). So the patch is noted in a small file before each call; the note is
overwritten in place, never flushed, and costs a few microseconds.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from volpatch.compute.caller import Call, Place
from volpatch.core.blending import BlendSpec
from volpatch.storage.files import open_file
from volpatch.storage.soundness import is_note

_PREFIX = "flight-"
_WIDTH = 512


class InFlight:
    """Calls a function, and notes before which patch of which region it is.

    Parameters
    ----------
    folder : for temporary files.
    region : number of the region.
    call : the function, with its answers checked.
    """

    def __init__(self, folder: Path, region: int, call: Call) -> None:
        self._path = folder / f"{_PREFIX}{os.getpid()}-{threading.get_ident()}"
        self._region, self._call = region, call
        self._handle = -1

    def __enter__(self) -> InFlight:
        with suppress(OSError):  # the note is a courtesy: no run fails for want of it
            self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o666)
        return self

    def __call__(
        self, blending: BlendSpec, batch: NDArray[Any], patch: Callable[[int], Place]
    ) -> NDArray[Any]:
        """Note the first patch of a batch, then call."""
        if self._handle >= 0:
            position, box = patch(0)
            note = {"region": self._region, "patch": position, "start": box.start, "stop": box.stop}
            with suppress(OSError):
                os.pwrite(self._handle, json.dumps(note).encode().ljust(_WIDTH), 0)
        return self._call(blending, batch, patch)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            with suppress(OSError):
                self._path.unlink()


def in_flight(folder: Path, process: int | None = None) -> Iterator[dict[str, Any]]:
    """Notes in a folder: of what is being called now, and of what was when a process died."""
    wanted = _PREFIX if process is None else f"{_PREFIX}{process}-"
    with suppress(OSError):
        for name in sorted(os.listdir(folder)):
            if name.startswith(wanted):
                with suppress(OSError, ValueError, RecursionError):
                    with open_file(folder / name) as file:
                        note = json.loads(file.read(2 * _WIDTH))
                    if is_note(note):
                        yield {name: note[name] for name in ("region", "patch", "start", "stop")}
