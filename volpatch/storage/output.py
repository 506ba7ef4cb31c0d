"""An output: built beside its place, put there by one rename.

    out.zarr.volpatch/          the work folder
        volpatch.json           says that the folder is ours, and whether `out.zarr` may be replaced
        tmp/                    files being written
        data/                   what becomes `out.zarr` when every write unit is there
            .volpatch/          its plan and records (see volpatch.storage.ledger)
        old/                    between the two renames of an overwrite: what `out.zarr` was

    absent  --begin-->  building  --publish-->  complete
       ^-----discard-------'                       |
                           '<--begin, to replace it when the new one is published

The image is OME-Zarr 0.5 on Zarr 3. Its objects are encoded and put by `LayerWriter`, each whole
and by one task. Several processes may build one output: whatever they do twice, they do with the
same bytes. Any of them may publish, also several at once, also again after it was cut short.
"""

from __future__ import annotations

import enum
import itertools
import json
import os
import stat
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from volpatch.core.errors import RunError, TargetError
from volpatch.core.options import Durability
from volpatch.core.parse import show_numbers
from volpatch.storage.codec import TargetSpec
from volpatch.storage.layers import IMAGE, LayerWriter
from volpatch.storage.ledger import LISTED, Ledger
from volpatch.storage.locks import lock
from volpatch.storage.metadata import completion, metadata_files, own_version
from volpatch.storage.stores.local import (
    KNOWN,
    MARKER,
    SUFFIX,
    AtomicFiles,
    check_replaceable,
    check_work_folder,
    disk_errors,
    read_marker,
    work_folder,
)


class Stage(enum.Enum):
    """How far an output is. One that is to be replaced is `BUILDING` while it is."""

    ABSENT = "absent"
    BUILDING = "building"
    COMPLETE = "complete"


@dataclass(frozen=True)
class Site:
    """Where one run writes: the root group, and a folder for temporary files.

    That folder is the run's own: what is left of a run that was discarded finds it gone, and
    can put nothing into a tree that was begun anew in the same place.
    """

    root: Path
    temp: Path
    durability: Durability

    @property
    def disk(self) -> AtomicFiles:
        return AtomicFiles(self.temp, root=self.root, durability=self.durability)

    @property
    def ledger(self) -> Path:
        """Folder of the plan and the records."""
        return self.root / SUFFIX


class Output:
    """The output of a run, at whatever stage it is.

    Parameters
    ----------
    target : str or Path
        Where the output is to be.
    durability : {"full", "process"}
        What finished writes survive: a power cut, or only the death of the process.
    overwrite : bool
        Whether the caller allows that an earlier output is replaced.
    """

    def __init__(
        self, target: str | Path, *, durability: Durability = "full", overwrite: bool = False
    ) -> None:
        self.target = Path(os.path.abspath(target))
        self.overwrite = overwrite
        self.folder = work_folder(self.target)
        self.data = self.folder / "data"
        self.tmp = self.folder / "tmp"
        self.old = self.folder / "old"
        self.disk = AtomicFiles(self.tmp, root=self.data, durability=durability)

    # -- what is there -------------------------------------------------------------------

    def building(self) -> Ledger | None:
        """The ledger of the tree that is being built; None where there is none."""
        return Ledger.open(self.data)

    def complete(self) -> Ledger | None:
        """The ledger of the output in its place; None where there is none."""
        return Ledger.open(self.target)

    def opened(self) -> tuple[Stage, Ledger]:
        """The ledger of what is being built, else of what is complete.

        Raises
        ------
        TargetError
            There is neither, or it has no records.
        """
        if (ledger := self.building()) is not None:
            return Stage.BUILDING, ledger
        if (ledger := self.complete()) is not None:
            return Stage.COMPLETE, ledger
        there = "has no records of volpatch's run" if self.target.exists() else "does not exist"
        raise TargetError(
            f"{str(self.target)!r} {there}, and nothing is being built for it; name the output of "
            f"`volpatch run`, finished or not"
        )

    def is_published(self, plan_id: str) -> bool:
        """Whether the complete output of just this plan is in its place."""
        found = self.complete() if (self.target / "zarr.json").is_file() else None
        return found is not None and found.file.id == plan_id

    @property
    def may_replace(self) -> bool:
        """Whether what is built here may replace an earlier output, by this caller or another."""
        return self.overwrite or read_marker(self.folder).get("overwrite") is True

    @property
    def is_leftover(self) -> bool:
        """Whether the folder holds what nobody will go on with: no plan, but more than that."""
        if (self.data / SUFFIX / "plan.json").exists():
            return False
        marker = read_marker(self.folder)
        if marker and ("tree" not in marker or "mends" in marker):
            return True
        return self.data.is_dir() and bool(set(os.listdir(self.data)) - {SUFFIX})

    @property
    def site(self) -> Site:
        """Where to write, once `begin` was called by this process or another."""
        tree = read_marker(self.folder).get("tree")
        if not isinstance(tree, str) or not tree.isalnum():
            raise RunError(
                f"the work folder {str(self.folder)!r} is gone, or was never begun: somebody "
                f"published or removed it; run again"
            )
        return Site(self.data, self.tmp / tree, self.disk.durability)

    def missing(self, spec: TargetSpec) -> Iterator[str]:
        """Keys, below the root, of write units that are not there; in C order."""
        *lead, last = spec.unit_grid
        for position in itertools.product(*map(range, lead)):
            key = "/".join((IMAGE, "c", *map(str, position)))
            there = _objects(self.data / key)
            yield from (f"{key}/{i}" for i in range(last) if str(i) not in there)

    # -- its life ------------------------------------------------------------------------

    def settle(self, *, ended: bool = True) -> None:
        """Undo a publish that was cut short between its renames, or finish it after them.

        Parameters
        ----------
        ended : whether what is left of one that was cut short after its renames is removed. A
            folder that another process begins just now looks the same: not to be done by one of
            several that replace an output together.
        """
        self._put_back()
        over = os.path.lexists(self.folder) and not os.path.lexists(self.data)
        if ended and over and os.path.lexists(self.target):
            self.discard()

    def begin(self, *, overwrite: bool, anew: bool = False) -> None:
        """Make the folders, or those that are missing; several processes may do so at once.

        Parameters
        ----------
        overwrite : bool
            Whether `publish` may replace an earlier output; that one stays until then.
        anew : bool
            Whether a tree that is there is dropped first.
        """
        if anew:
            self.discard()
        self._make_folders(overwrite=overwrite)

    def _make_folders(self, *, overwrite: bool, mends: bool = False) -> None:
        with disk_errors(self.folder):
            for folder in (self.folder, self.tmp):
                self.disk.make_folder(folder, exist_ok=True)
            if "volpatch" not in read_marker(self.folder):
                marker = {
                    "volpatch": own_version(),
                    "overwrite": overwrite,
                    "tree": uuid.uuid4().hex,
                    **({"mends": True} if mends else {}),
                }
                self.disk.put_new(self.folder / MARKER, json.dumps(marker).encode())
            site = self.site
            for folder in (site.temp, *(() if mends else (site.root,))):
                self.disk.make_folder(folder, exist_ok=True)

    def go_on(self) -> Site:
        """Where to write in a tree that was begun; a folder for temporary files that was lost
        is made again.
        """
        site = self.site
        with disk_errors(self.folder):
            for folder in (self.tmp, site.temp):
                self.disk.make_folder(folder, exist_ok=True)
        return site

    def writer(
        self,
        spec: TargetSpec,
        start: Sequence[int],
        stop: Sequence[int],
        *,
        stream_axis: int,
        check: Callable[[], None] = lambda: None,
    ) -> LayerWriter:
        """A writer for the box from `start` to `stop` (see `LayerWriter`)."""
        return LayerWriter(
            self.data,
            self.disk,
            spec,
            start=start,
            stop=stop,
            stream_axis=stream_axis,
            check=check,
        )

    def publish(self, ledger: Ledger) -> None:
        """Put the finished tree in its place, if all of it is there, and remove the work folder.

        This is the one step that makes an output exist. Where another process was faster,
        nothing is left to do.

        Raises
        ------
        RunError
            Regions are missing, or objects; nothing is changed.
        TargetError
            There is something in that place that must not be replaced.
        """
        with self.publishing():
            self._put_back()
            if not os.path.lexists(self.data) and self.is_published(ledger.file.id):
                self._remove_all()
                return
            self._check_complete(ledger)
            site = self.site
            files = metadata_files(ledger.spec, completion(ledger.file, ledger.spec))
            with disk_errors(self.data):
                for key, content in files.items():  # the root's own comes last
                    self.disk.put(self.data / key, content)
            ledger.tell_metadata(files, site.disk)
            ledger.flush(site.disk)
            self._move()

    def _move(self) -> None:
        check_work_folder(self.folder)
        replaces = os.path.lexists(self.target)
        if replaces:
            check_replaceable(self.target, overwrite=self.may_replace)
        with self.mending(), disk_errors(self.target):
            if replaces:
                self.disk.rename(self.target, self.old)
            try:
                self.disk.rename(self.data, self.target)
            except OSError:
                self._put_back()
                raise
            if replaces:  # half removed, it must never be taken for what to put back
                self.disk.rename(self.old, self.tmp / "old")
        self._remove("the output itself is complete")

    def discard(self) -> None:
        """Remove the work folder, if it is there, all in it is ours and nobody is at work in it."""
        with self.unused():
            self._remove_all()

    def give_up(self, temp: Path) -> None:
        """Remove all that was written into a tree, and keep what still writes from writing.

        Parameters
        ----------
        temp : folder for temporary files, of those who may still write.
        """
        # Two renames end it at once: who is still at it finds neither where to begin a file nor
        # where to put it, so the folder can be removed in peace, and its name can be used again.
        for old, new in ((temp, "stopped"), (self.data, "given-up")):
            if old.exists():
                os.rename(old, self.tmp / f"{temp.name}-{new}")
        self._remove_all()

    def _remove_all(self) -> None:
        if os.path.lexists(self.folder):
            check_work_folder(self.folder)
            self._put_back()
            self._remove("nothing was published")

    def _remove(self, outcome: str) -> None:
        with disk_errors(self.folder, outcome):
            for name in (*KNOWN, MARKER):
                self.disk.remove(self.folder / name)
            self.disk.remove(self.folder)

    def _put_back(self) -> None:
        """Undo a publish that was cut short between its two renames."""
        if os.path.lexists(self.old) and not os.path.lexists(self.target):
            check_work_folder(self.folder)
            with disk_errors(self.target):
                self.disk.rename(self.old, self.target)

    def _check_complete(self, ledger: Ledger) -> None:
        left = ledger.state().left
        if left:
            raise RunError(
                f"{len(left)} of {ledger.file.n_regions} regions of {str(self.target)!r} are not "
                f"done ({show_numbers(left, LISTED)}); nothing was published. Run again to compute "
                f"them, or see `volpatch status`"
            )
        first: list[str] = []
        count = 0
        for key in self.missing(ledger.spec):
            count += 1
            if len(first) < LISTED:
                first.append(key)
        if count:
            more = ", ..." if count > len(first) else ""
            raise RunError(
                f"{count} of {ledger.spec.n_units} write units of {str(self.target)!r} are missing "
                f"({', '.join(first)}{more}); nothing was published. Run again to compute them"
            )

    # -- who is at it ----------------------------------------------------------------------

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep others from discarding the tree while inside; any number may be inside."""
        with self._locked(self.folder / MARKER, shared=True):
            yield

    @contextmanager
    def unused(self) -> Iterator[None]:
        """Refuse to go on while a run of this machine is at work in the tree, or beside it."""
        # in this order: who is refused here must not keep the other from publishing meanwhile
        with self._locked(self.folder / MARKER), self.mending():
            yield

    @contextmanager
    def mending(self) -> Iterator[None]:
        """Let one process at a time repair the finished output; others are refused."""
        with self._locked(self.target / SUFFIX):
            yield

    @contextmanager
    def beside(self) -> Iterator[Site]:
        """Where to write while the complete output is repaired in its place."""
        self._make_folders(overwrite=False, mends=True)
        try:
            with self.in_use():
                yield Site(self.target, self.site.temp, self.disk.durability)
        finally:
            self._remove_all()

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """Let one process at a time move finished trees to their place; others wait."""
        with self._locked(self.folder, wait=True):
            yield

    @contextmanager
    def _locked(self, path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
        """Hold a lock that goes with the process, however that ends.

        A kindness rather than a need: on file systems without locks nothing is held, and of
        two that start over or publish at the same instant one is told so by an error.
        """
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError:
            yield
            return
        try:
            try:
                lock(handle, shared=shared, wait=wait)
            except BlockingIOError:
                raise TargetError(
                    f"another run is writing {str(self.target)!r} at this moment, or a retry "
                    f"mends it; wait for it, or choose another name"
                ) from None
            except OSError:
                pass
            yield
        finally:
            os.close(handle)


def _objects(folder: Path) -> set[str]:
    """Names of the files in a folder that hold anything; none if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            states = ((entry.name, entry.stat(follow_symlinks=False)) for entry in entries)
            return {name for name, s in states if stat.S_ISREG(s.st_mode) and s.st_size}
    except (FileNotFoundError, NotADirectoryError):
        return set()
