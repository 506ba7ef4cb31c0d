"""Records of what was done: appended to, never changed, a line per event with its own checksum.

A torn last line is passed over, and so is what cannot be true. `State` folds events into what is
known of each region.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from volpatch.core.errors import TargetError
from volpatch.core.numbers import Numbers
from volpatch.storage.files import open_file
from volpatch.storage.patience import patiently
from volpatch.storage.regions import RegionTable
from volpatch.storage.soundness import is_event
from volpatch.storage.stores.local import AtomicFiles, disk_errors

RECORDS = "records"
_LOG = ".log"
MISSING, STARTED, FAILED, DONE, SKIPPED, EMPTY = range(6)
STATES = ("missing", "started", "failed", "done", "skipped", "empty")
Event = dict[str, Any]


def encode_line(event: Mapping[str, Any]) -> bytes:
    """One record: JSON and its checksum, on one line."""
    text = json.dumps(event, separators=(",", ":"))
    return f"{text}\t{zlib.crc32(text.encode()):08x}\n".encode()


def decode_line(line: bytes) -> Event | None:
    """The event of a line; None for a line that was torn or changed.

    >>> decode_line(encode_line({"kind": "done"})), decode_line(b'{"kind": "do')
    ({'kind': 'done'}, None)
    """
    text, tab, check = line.rpartition(b"\t")
    if not tab or check != b"%08x\n" % zlib.crc32(text):
        return None
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


@dataclass
class Recorder:
    """Writes the records of one process, in a file of its own; its threads take turns.

    Parameters
    ----------
    folder : of the ledger.
    disk : how files are written.
    """

    folder: Path
    disk: AtomicFiles
    path: Path = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _begun: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._new_file()

    def _new_file(self) -> None:
        host = "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:40]
        self._who = {"host": host, "pid": os.getpid()}
        name = f"{host}-{os.getpid()}-{uuid.uuid4().hex[:12]}{_LOG}"
        self.path, self._begun = self.folder / RECORDS / name, False

    def write(self, kind: str, region: int, **more: Any) -> None:
        """Append one event. What it tells of is on the disk; the line will soon be.

        A power cut may take the lines of the last seconds: what they told of is then made
        again. They are flushed before the output is published.
        """
        event = {"kind": kind, "region": region, **more, "time": round(time.time(), 3)}
        line = encode_line(event)
        with self._lock, disk_errors(self.path, "what was finished before is kept"):
            patiently(lambda: self._append(line))

    def _append(self, line: bytes) -> None:
        try:
            if not self._begun:
                first = encode_line({"kind": "log", **self._who})
                try:
                    self.disk.append_line(self.path, first, new=True)
                except FileNotFoundError:
                    # somebody removed the records; where the whole tree is gone, this fails too
                    self.disk.make_folder(self.path.parent, exist_ok=True)
                    self.disk.append_line(self.path, first, new=True)
                self._begun = True
            self.disk.append_line(self.path, line, new=False)
        except OSError:
            self._new_file()  # the line may be torn, and would spoil the next one
            raise


class RecordReader:
    """Reads records as they come: each call gives the whole lines that are new since the last."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / RECORDS
        self._offsets: dict[str, int] = {}
        self.damaged = 0  # whole lines that do not match their checksum, or cannot be true

    def __call__(self) -> Iterator[Event]:
        try:
            names = sorted(name for name in os.listdir(self._folder) if name.endswith(_LOG))
        except (FileNotFoundError, NotADirectoryError):
            if os.path.lexists(self._folder):
                raise TargetError(
                    f"{str(self._folder)!r} is not a folder, but records of what is done belong "
                    f"there; {_MOVE_AWAY}"
                ) from None
            return
        for name in names:
            yield from self._new_lines(name)

    def _new_lines(self, name: str) -> Iterator[Event]:
        path, offset = self._folder / name, self._offsets.get(name, 0)
        with suppress(FileNotFoundError), _open_record(path) as file:
            if os.fstat(file.fileno()).st_size == offset:
                return
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # torn, or not yet written to its end
                self._offsets[name] = offset = offset + len(line)
                event = decode_line(line)
                if event is None or not is_event(event):
                    self.damaged += 1
                else:
                    yield event


_MOVE_AWAY = (
    "move it away, then run again, or `volpatch retry` if the output is finished: what has no "
    "record is made again"
)


def _open_record(path: Path) -> BinaryIO:
    try:
        return open_file(path)
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise TargetError(
            f"the record {str(path)!r} cannot be read (permission denied): it may be another "
            f"user's, who has to change the permissions"
        ) from error
    except OSError as error:
        raise TargetError(
            f"the record {str(path)!r} cannot be read ({error.strerror or error}); {_MOVE_AWAY}"
        ) from error


class State:
    """What the records say of each region.

    Parameters
    ----------
    n_regions : int
    believe : callable, optional
        Whether the object of a unit (number, size) is to be believed in.
    events : callable, optional
        Gives the events that are new since it was called last.

    Attributes
    ----------
    status : of each region, one of MISSING, STARTED, FAILED, DONE, SKIPPED, EMPTY.
    failures : last failure of the regions that failed.
    patches : computed so far, those done twice counted twice.
    accepted : how files of the input looked that were accepted after they changed, by number.
    """

    def __init__(
        self,
        n_regions: int,
        believe: Callable[[int, int], bool] = lambda unit, size: True,
        events: Callable[[], Iterable[Event]] = tuple,
    ) -> None:
        self.status = RegionTable(n_regions, len(STATES))
        self.failures: dict[int, Event] = {}
        self.patches = self.clipped = 0
        self.times: list[tuple[float, int]] = []
        self.accepted: dict[int, Any] = {}
        self._believe, self._events = believe, events
        self._refreshed: float | None = None
        self._metadata: dict[str, tuple[float, int, str]] = {}
        self._partial: dict[int, array[int]] = {}  # unit numbers; one may come twice

    def refresh(self, *, at_most_every: float = 0.0) -> None:
        """Take in what was recorded since the last time, by whomever.

        Looking at many files of records takes its time: with `at_most_every` it is not done again
        before so many seconds have passed.
        """
        now = time.monotonic()
        if self._refreshed is not None and now - self._refreshed < at_most_every:
            return
        self._refreshed = now
        for event in self._events():
            self.take(event)

    def take(self, event: Event) -> None:
        """Count one event."""
        region, kind = event.get("region", -1), event["kind"]
        if kind == "input":
            self.accepted.update((number, look) for number, look in event["files"])
        elif kind == "commit":
            for key, size, checksum in event["files"]:
                told = (event["time"], size, checksum)
                if key not in self._metadata or self._metadata[key][0] <= told[0]:
                    self._metadata[key] = told
        if not 0 <= region < len(self.status):
            return
        status = self.status[region]
        if kind == "layer":
            self._take_layer(region, event)
        elif kind == "start" and status == MISSING:
            self.status[region] = STARTED
        elif kind == "failed" and status < DONE:
            self.status[region] = FAILED
            self.failures[region] = event
        elif kind == "done" and status == DONE:
            self.status[region] = STATES.index(event["state"])

    def _take_layer(self, region: int, event: Event) -> None:
        self.patches += event["patches"]
        self.clipped += event["clipped"]
        self._note_time(event["time"], event["patches"])
        if self.status[region] >= DONE:
            return
        units = self._partial.setdefault(region, array("q"))
        units.extend(n for n, size, _ in event["units"] if self._believe(n, size))
        if len(units) >= event["of"]:
            self._partial[region] = units = array("q", np.unique(units).tobytes())
        if len(units) == event["of"]:
            self.status[region] = DONE
            del self._partial[region]
            self.failures.pop(region, None)
        elif self.status[region] == MISSING:
            self.status[region] = STARTED

    def _note_time(self, when: float, patches: int) -> None:
        """Keep when patches were done, in few numbers."""
        self.times.append((when, patches))
        if len(self.times) > 4096:
            self.times = sorted(self.times)[2048:]

    def is_done(self, region: int) -> bool:
        return self.status[region] >= DONE

    def recorded(self, region: int) -> NDArray[np.int64]:
        """Units of a region that is not done that are recorded all the same, in rising order."""
        return np.unique(np.array(self._partial.get(region, ()), dtype=np.int64))

    @property
    def begun(self) -> list[int]:
        """Regions that are not done, and have units that are recorded."""
        return sorted(region for region, units in self._partial.items() if units)

    @property
    def metadata(self) -> dict[str, tuple[int, str]]:
        """Size and SHA-256 of the metadata, by key, as the last publish told."""
        return {key: (size, checksum) for key, (_, size, checksum) in self._metadata.items()}

    @property
    def left(self) -> Numbers:
        """Numbers of the regions that are not done."""
        return self.status.where(lambda states: states < DONE)

    @property
    def done(self) -> Numbers:
        """Numbers of the regions that are done."""
        return self.status.where(lambda states: states >= DONE)

    @property
    def n_done(self) -> int:
        return sum(self.status.tally[DONE:])
