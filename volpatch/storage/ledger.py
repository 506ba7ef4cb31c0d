"""Which regions of a run are done: one immutable plan, and records that are only appended.

    out.zarr.volpatch/data/.volpatch/     while the run is unfinished
        plan.json                what determines the bytes, and the regions; made exclusively
        records/*.log            one file per process, a line per event with its own checksum
    out.zarr/.volpatch/          the same, when it is published

Data comes first, its record after it, with the size and SHA-256 of every object: an object
without a record is made again (the same bytes), a record without its object is not believed.
A torn last line is passed over. Whoever starts asks the ledger first, so that repeated, late
and parallel tasks are harmless.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import socket
import threading
import time
import uuid
import zlib
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from volpatch.core.errors import RunError, TargetError
from volpatch.storage.files import open_file
from volpatch.storage.patience import patiently
from volpatch.storage.soundness import bad_field, is_event
from volpatch.storage.stores.local import Puts, disk_errors

PLAN = "plan.json"
RECORDS = "records"
_LOG = ".log"
FORMAT = 1
FUNCTIONS = ("function", "setup", "finalize", "skip")
INPUT = "source.data"  # how the input's files look: compared file by file, by planning.inputs
MISSING, STARTED, FAILED, DONE, SKIPPED, EMPTY = range(6)
STATES = ("missing", "started", "failed", "done", "skipped", "empty")
_MAX_PLAN_BYTES = 2**28
Event = dict[str, Any]


def canonical(value: Any) -> str:
    """JSON that is the same for the same value; 1, 1.0 and true are not, nor are 0.0 and -0.0.

    >>> canonical({"b": 1, "a": [2.0]})
    '{"a":[2.0],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest(value: Any) -> str:
    """SHA-256 of a value's canonical JSON.

    >>> digest({"b": 1, "a": [2]}) == digest({"a": [2], "b": 1})
    True
    """
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings, with dotted names.

    >>> list(flat({"a": {"b": 1}, "c": [2]}))
    [('a.b', 1), ('c', [2])]
    """
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{prefix}{key}.")
    else:
        yield prefix.rstrip("."), value


@dataclass(frozen=True)
class PlanFile:
    """What every process of a run agrees on.

    Attributes
    ----------
    identity : what determines the bytes of the output; its digest is the plan's id.
    layout : how the work is divided, and what the trial call told.
    job : the words that make the plan again; None where they hold objects, not names.
    """

    identity: dict[str, Any]
    layout: dict[str, Any]
    job: dict[str, Any] | None

    @property
    def id(self) -> str:
        return digest(self.identity)

    @property
    def writer(self) -> str | None:
        """What wrote the output, where that was no run: nobody can go on with it."""
        found = self.identity.get("writer")
        return None if found is None else str(found)

    @property
    def n_regions(self) -> int:
        return int(self.layout["regions"])

    def to_bytes(self) -> bytes:
        values = {"identity": self.identity, "layout": self.layout, "job": self.job}
        top = {"volpatch_plan": FORMAT, "id": self.id, "sum": digest(values)}
        return (json.dumps({**top, **values}, indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def load(cls, folder: Path) -> PlanFile | None:
        """The plan in a ledger's folder; None where there is none."""
        path = folder / PLAN
        try:
            with open_file(path) as file:
                values = json.loads(file.read(_MAX_PLAN_BYTES))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise TargetError(
                f"the plan {str(path)!r} cannot be read ({error}); {_START_OVER}"
            ) from error
        if not isinstance(values, dict) or values.get("volpatch_plan") != FORMAT:
            raise TargetError(
                f"the plan {str(path)!r} was made by another version of volpatch; go on with that "
                f"version, or start over with overwrite=True"
            )
        parts: dict[str, Any] = {name: values.get(name) for name in ("identity", "layout", "job")}
        if (values.get("sum"), values.get("id")) != (digest(parts), digest(parts["identity"])):
            raise TargetError(
                f"the plan {str(path)!r} is damaged: it no longer matches its own checksum; "
                f"{_START_OVER}"
            )
        if (name := bad_field(parts)) is not None:
            raise TargetError(
                f"the plan {str(path)!r} is damaged: its {name} cannot be what it says; "
                f"{_START_OVER}"
            )
        return cls(**parts)

    def create(self, folder: Path, puts: Puts) -> PlanFile:
        """Put the plan, unless another process was first; gives the plan that is there."""
        begin_records(folder, puts)
        with disk_errors(folder):
            puts.put_new(folder / PLAN, self.to_bytes())
        there = PlanFile.load(folder)
        if there is None:
            raise RunError(
                f"the plan in {str(folder)!r} vanished: somebody removed the work folder; run again"
            )
        return there

    def differences(self, other: PlanFile) -> list[str]:
        """Fields in which another plan differs, old against new; the input's files apart."""
        if self.writer is not None and self.writer != other.writer:
            return [f"it was written by {self.writer} and is now asked of run"]
        mine, theirs = dict(flat(self.identity)), dict(flat(other.identity))
        files = dict(flat({"depends_on": other.layout.get("depends_on")}))
        unlike = {
            name
            for name in {*mine, *theirs} - {INPUT}
            if canonical(mine.get(name)) != canonical(theirs.get(name))
        }
        # the attributes of an output repeat what other fields say
        told = {name for name in unlike if not name.startswith(_ATTRIBUTES)}
        return [
            f"{name}{f' ({files[name]})' if name in files else ''} was "
            f"{_shown(mine.get(name), theirs.get(name))} and is now "
            f"{_shown(theirs.get(name), mine.get(name))}"
            for name in sorted(told or unlike)
            if not _goes_without_saying(name, unlike)
        ]

    def check_same(self, wanted: PlanFile, place: Path, *, finished: bool = False) -> None:
        """Refuse to go on with a plan that would give other bytes, or to take it for done."""
        differences = self.differences(wanted)
        if differences and finished:
            raise TargetError(
                f"the output {str(place)!r} exists, and was made by another job: "
                f"{'; '.join(differences)}; pass overwrite=True to replace it when "
                f"the new one is complete, or choose another name"
            )
        if differences:
            raise TargetError(
                f"{str(place)!r} holds a run of another plan: {'; '.join(differences)}. Ask for "
                f"the same again to go on with it, or start over with overwrite=True"
            )


def begin_records(folder: Path, puts: Puts) -> None:
    """Make a ledger's folders, where they are not there yet."""
    with disk_errors(folder):
        puts.make_folder(folder, exist_ok=True)
        puts.make_folder(folder / RECORDS, exist_ok=True)


def _goes_without_saying(name: str, unlike: Collection[str]) -> bool:
    """Whether a field tells what a function is made of, and another one was given altogether."""
    parts = name.split(".")
    if parts[0] not in FUNCTIONS:
        return False
    return any(
        part not in ("target", "parameters", "factory")
        and ("func_version" in unlike or ".".join([*parts[:depth], "target"]) in unlike)
        for depth, part in enumerate(parts[1:], 1)
    )


_ATTRIBUTES = "output.attributes."
_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")  # a SHA-256, of which a part is shown
_START_OVER = "restore it from a copy, or start over with overwrite=True"


def _shown(value: Any, other: Any) -> str:
    """A value in words; of a long one the part from where it differs from another on."""
    text, unlike = (
        "nothing" if v is None else _HASH.sub(r"\1...", json.dumps(v)) for v in (value, other)
    )
    if len(text) <= 80:
        return text
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(text, unlike, strict=False))
    begin = max(0, sum(1 for _ in alike) - 30)
    part = f"{'...' if begin else ''}{text[begin : begin + 60]}"
    return part if begin + 60 >= len(text) else f"{part}... ({digest(value)[:12]})"


# -- records -------------------------------------------------------------------------------


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
    puts : how files are written.
    """

    folder: Path
    puts: Puts
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
                    self.puts.append_line(self.path, first, new=True)
                except FileNotFoundError:
                    # somebody removed the records; where the whole tree is gone, this fails too
                    self.puts.make_folder(self.path.parent, exist_ok=True)
                    self.puts.append_line(self.path, first, new=True)
                self._begun = True
            self.puts.append_line(self.path, line, new=False)
        except OSError:
            self._new_file()  # the line may be torn, and would spoil the next one
            raise


class Reader:
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
    except OSError as error:
        raise TargetError(
            f"the record {str(path)!r} cannot be read ({error.strerror or error}); {_MOVE_AWAY}"
        ) from error


class State:
    """What the records say of each region: a byte a region, and a little for those begun.

    Parameters
    ----------
    n_regions : int
    believe : callable, optional
        Whether the object of a unit (number, size) is to be believed in.

    Attributes
    ----------
    status : uint8 per region, one of MISSING, STARTED, FAILED, DONE, SKIPPED, EMPTY.
    failures : last failure of the regions that failed.
    patches : computed so far, those done twice counted twice.
    """

    def __init__(
        self, n_regions: int, believe: Callable[[int, int], bool] = lambda unit, size: True
    ) -> None:
        self.status: NDArray[np.uint8] = np.zeros(n_regions, dtype=np.uint8)
        self.failures: dict[int, Event] = {}
        self.patches = self.clipped = 0
        self.times: list[tuple[float, int]] = []
        self._believe = believe
        self._partial: dict[int, array[int]] = {}  # unit numbers; one may come twice

    def take(self, event: Event) -> None:
        """Count one event."""
        region, kind = event.get("region", -1), event["kind"]
        if not 0 <= region < len(self.status):
            return
        status = int(self.status[region])
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
        return bool(self.status[region] >= DONE)

    def recorded(self, region: int) -> NDArray[np.int64]:
        """Units of a region that is not done that are recorded all the same, in rising order."""
        return np.unique(np.array(self._partial.get(region, ()), dtype=np.int64))

    @property
    def begun(self) -> list[int]:
        """Regions that are not done, and have units that are recorded."""
        return sorted(region for region, units in self._partial.items() if units)

    @property
    def n_done(self) -> int:
        return int(np.count_nonzero(self.status >= DONE))

    def with_status(self, *wanted: int) -> list[int]:
        return [int(i) for i in np.flatnonzero(np.isin(self.status, wanted))]


def size_is(root: Path, key: str, size: int) -> bool:
    """Whether an object is there with the size that was recorded."""
    try:
        state = os.lstat(root / key)
    except OSError:
        return False
    return state.st_size == size and state.st_mode & 0o170000 == 0o100000
