"""The one place where files are made, moved and removed, and where that may be refused.

An object comes into being by one rename: its bytes go to a temporary file first, in a folder on
the same file system but outside of the tree that is published. A killed writer leaves litter
there and nothing half-written under a name that is read. Nothing is replaced or removed that was
not made here: `check_target` and `check_work_folder` decide that, and refuse whatever is in doubt.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from volpatch.core.errors import RunError, TargetError
from volpatch.core.options import Durability
from volpatch.storage.patience import PATIENCE_SECONDS, patiently

SUFFIX = ".volpatch"
MARKER = "volpatch.json"
KNOWN = ("data", "tmp", "old")  # removed before the marker, by which the folder is known as ours
_JSON_LIMIT = 16 * 2**20
_NAME_LIMIT = 255
# file systems without hard links say one of these
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})

_T = TypeVar("_T")
Piece = bytes | bytearray | memoryview


class AtomicFiles:
    """Writes files so that each is either whole or absent.

    Parameters
    ----------
    tmp : Path
        Folder for temporary files; made by the caller.
    root : Path, optional
        Folders are made below this one only, and it is never made itself: a worker left over
        from a run that is already published finds nothing to write into.
    durability : {"full", "process"}
        "full" survives a power cut: files and the folders that name them are flushed to the
        device. "process" survives the death of the process only, and is faster.
    """

    def __init__(
        self, tmp: Path, *, root: Path | None = None, durability: Durability = "full"
    ) -> None:
        self.tmp = tmp
        self.root = root
        self.durability = durability

    def put(self, path: Path, data: Piece | Sequence[Piece]) -> int:
        """Make `path` hold exactly `data`, in one atomic step; returns the number of bytes."""
        return patiently(lambda: self._put_once(path, data))

    def _put_once(self, path: Path, data: Piece | Sequence[Piece]) -> int:
        temp = self.new_temp()
        try:
            size = self.append(temp, data)
            self.publish_temp(temp, path)
        except BaseException:
            self.drop_temp(temp)
            raise
        return size

    def put_new(self, path: Path, data: Piece) -> bool:
        """Make `path` hold `data` unless it is there; of several callers one is first.

        Returns
        -------
        bool
            Whether this call made it.
        """
        temp = self.new_temp()
        self.append(temp, data)
        try:
            if self.durability == "full":
                _flush(self.tmp / temp)
            try:
                os.link(self.tmp / temp, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return self._claim_and_put(temp, path)
            self._flush_folder(path.parent)
            return True
        finally:
            self.drop_temp(temp)

    def _claim_and_put(self, temp: str, path: Path) -> bool:
        """`put_new` where there are no hard links: a folder that one caller can make decides."""
        claim = self.tmp / f"claim-{path.name}"
        for wait in (*PATIENCE_SECONDS, 0):
            if path.exists():
                return False
            try:
                claim.mkdir()
                break
            except FileExistsError:  # another is at it, or was killed at it
                time.sleep(wait)
        self.publish_temp(temp, path)
        return True

    def append_line(self, path: Path, line: bytes, *, new: bool) -> None:
        """Add a line to a file that has one writer; `new` makes the file, which must not be.

        It is left to the system when the line reaches the disk: see `flush_files`.
        """
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | (os.O_CREAT | os.O_EXCL) * new, 0o666)
        try:
            _write(handle, line)
        finally:
            os.close(handle)

    def flush_files(self, folder: Path) -> None:
        """Let all files of a folder, whoever wrote them, survive a power cut."""
        if self.durability == "full":
            for name in sorted(os.listdir(folder)):
                _flush(folder / name)
            _flush(folder)

    def new_temp(self) -> str:
        """A name for a temporary file that no other writer uses."""
        return f"{os.getpid()}-{uuid.uuid4().hex}"

    def append(self, temp: str, data: Piece | Iterable[Piece]) -> int:
        """Add to the end of a temporary file; pieces are taken one at a time, as they come."""
        single = isinstance(data, bytes | bytearray | memoryview)
        pieces = (cast("Piece", data),) if single else cast("Iterable[Piece]", data)
        size = 0
        handle = os.open(self.tmp / temp, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            for piece in pieces:
                size += _write(handle, piece)
        finally:
            os.close(handle)
        return size

    def publish_temp(self, temp: str, path: Path) -> None:
        """Give a finished temporary file its name, replacing what was there."""
        if self.durability == "full":
            _flush(self.tmp / temp)
        try:
            os.replace(self.tmp / temp, path)
        except FileNotFoundError:
            self._make_parents(path.parent)
            os.replace(self.tmp / temp, path)
        except IsADirectoryError:
            _remove_empty(path)
            os.replace(self.tmp / temp, path)
        self._flush_folder(path.parent)

    def drop_temp(self, temp: str) -> None:
        """Remove a temporary file if it is there."""
        _unlink(self.tmp / temp)

    def rename(self, old: Path, new: Path) -> None:
        """Move a file or folder; `new` must not exist."""
        if os.path.lexists(new):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new))
        os.rename(old, new)
        self._flush_folder(new.parent)
        if old.parent != new.parent:
            self._flush_folder(old.parent)

    def make_folder(self, path: Path, *, exist_ok: bool = False) -> None:
        """Make one folder, in a parent that exists."""
        try:
            os.mkdir(path)
        except FileExistsError:
            if not exist_ok or path.is_symlink() or not path.is_dir():
                raise
        self._flush_folder(path.parent)

    def remove(self, path: Path) -> None:
        """Remove a file, a folder with all in it, or a link but never what a link leads to.

        What others remove or add at the same time is no error.
        """
        if path.is_symlink() or not path.is_dir():
            _unlink(path)
            return
        for last in (False, False, True):
            with suppress(FileNotFoundError):
                for name in os.listdir(path):
                    self.remove(path / name)
            try:
                os.rmdir(path)
                return
            except FileNotFoundError:
                return
            except OSError as error:
                if last or error.errno != errno.ENOTEMPTY:
                    raise

    def _make_parents(self, folder: Path) -> None:
        absent = []
        while not folder.is_dir():
            if self.root is None or self.root not in folder.parents:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
            absent.append(folder)
            folder = folder.parent
        for folder in reversed(absent):
            self.make_folder(folder, exist_ok=True)

    def _flush_folder(self, folder: Path) -> None:
        if self.durability == "full":
            _flush(folder)


def _write(handle: int, data: Piece) -> int:
    left = memoryview(data).cast("B")
    size = len(left)
    while left:
        left = left[os.write(handle, left) :]
    return size


def _remove_empty(folder: Path) -> None:
    """Remove a folder that lies where a file should; never one that holds something."""
    try:
        os.rmdir(folder)
    except OSError as error:
        said = f"a folder that is not empty is in the place of the file {str(folder)!r}"
        raise OSError(error.errno, said) from error


def _unlink(path: Path) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def probe(folder: Path) -> None:
    """Raise OSError if no file can be made in `folder`."""
    with suppress(OSError, AttributeError):
        # a file without a name leaves nothing behind, whatever happens here
        os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o600))
        return
    path = folder / f".volpatch-{uuid.uuid4().hex}"
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    path.unlink()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_target(
    target: str | Path, *, overwrite: bool, source_path: str | None, exists: bool = True
) -> None:
    """Refuse, before anything is computed, a place that cannot or must not be written.

    Parameters
    ----------
    target : str or Path
        Where the output is to be.
    overwrite : bool
        Whether an earlier output of volpatch may be replaced.
    source_path : str or None
        Where the input is, if it is a local file or folder.
    exists : bool
        Whether what is there already is looked at.

    Raises
    ------
    TargetError
        Says what is in the way and what to do.
    """
    _check_name(str(target))
    path = Path(os.path.abspath(target))
    if not path.parent.is_dir():
        state = "is not a folder" if os.path.lexists(path.parent) else "does not exist"
        raise TargetError(
            f"the output {str(path)!r} cannot be made: {str(path.parent)!r} {state}; "
            "make that folder first, or choose another place"
        )
    if source_path is not None and "://" not in source_path:
        for place in (path, work_folder(path)):
            _check_apart(place, source_path)
    if exists and os.path.lexists(path):
        check_replaceable(path, overwrite=overwrite)
    if os.path.lexists(work_folder(path)):
        check_work_folder(work_folder(path))
    try:
        probe(path.parent)
    except OSError as error:
        raise TargetError(
            f"the output {str(path)!r} cannot be made: no file can be written in "
            f"{str(path.parent)!r} ({error.strerror}); choose another place"
        ) from error


def _check_name(name: str) -> None:
    if re.search(r"[\x00-\x1f\x7f]", name):
        raise TargetError(f"the output name {name!r} has control characters; choose another")
    if "://" in name:
        raise TargetError(f"the output {name!r} is a URL; give a path on a local disk")
    last = Path(os.path.abspath(name)).name if name else ""
    if not last:
        raise TargetError(f"the output name {name!r} names no folder that could be made")
    if len(os.fsencode(last + SUFFIX)) > _NAME_LIMIT:
        raise TargetError(
            f"the output name {last!r} has {len(os.fsencode(last))} bytes; "
            f"at most {_NAME_LIMIT - len(SUFFIX)} are possible, choose a shorter one"
        )


def _check_apart(target: Path, source_path: str) -> None:
    """Refuse a target that is the source, in it, or around it; links do not hide it."""
    real_target = Path(os.path.realpath(target))
    real_source = Path(os.path.realpath(source_path))
    if _is_same(real_target, real_source):
        relation = "is"
    elif any(_is_same(parent, real_source) for parent in real_target.parents):
        relation = "lies inside"
    elif any(_is_same(parent, real_target) for parent in real_source.parents):
        relation = "would contain"
    else:
        return
    raise TargetError(
        f"the output {str(target)!r} {relation} the input {source_path!r}; "
        "choose an output elsewhere: the input is never written to"
    )


def _is_same(one: Path, other: Path) -> bool:
    if one == other:
        return True
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def check_replaceable(target: Path, *, overwrite: bool) -> None:
    """Refuse to replace what exists, unless told to and every part of it was made here."""
    if target.is_symlink():
        raise TargetError(
            f"the output {str(target)!r} is a link to {os.readlink(target)!r}, and links are not "
            f"replaced; name the folder itself, or choose another name"
        )
    strange = _strange_entry(target)
    if strange is not None:
        raise TargetError(
            f"the output {str(target)!r} exists and was not made by volpatch alone ({strange}), "
            "so it is not overwritten; move or delete it yourself, or choose another name"
        )
    if not overwrite:
        raise TargetError(
            f"the output {str(target)!r} exists; pass overwrite=True to replace it "
            "when the new one is complete, or choose another name"
        )


def _strange_entry(target: Path) -> str | None:
    """What shows that a folder is not, or not only, an output of volpatch; None if nothing."""
    if not target.is_dir():
        return "it is a file"
    attributes = _json_file(target / "zarr.json").get("attributes")
    if not isinstance(attributes, dict) or "volpatch" not in attributes:
        return "its zarr.json has no 'volpatch' attribute"
    for entry in sorted(os.listdir(target)):
        level = target / entry
        if entry not in ("zarr.json", SUFFIX) and not re.fullmatch(r"scale\d+", entry):
            return f"it holds {entry!r}"
        if entry.startswith("scale"):
            if level.is_symlink() or not level.is_dir():
                return f"{entry!r} is not a folder"
            names = _json_file(level / "image" / "zarr.json").get("dimension_names")
            known = {"zarr.json", "image", *(names if isinstance(names, list) else ())}
            for inner in sorted(set(os.listdir(level)) - known):
                return f"it holds {entry + '/' + inner!r}"
    return None


def check_work_folder(folder: Path) -> None:
    """Refuse a work folder that is not ours, or in which somebody keeps something."""
    if folder.is_symlink() or not folder.is_dir():
        reason = "it is not a folder"
    elif not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise TargetError(
            f"{str(folder)!r} is needed to build the output, and you may not write there "
            f"(permission denied): another user may be building the same output. Choose another "
            f"output name, or let its owner change the permissions"
        )
    else:
        entries = set(os.listdir(folder))
        strange = sorted(entries - {*KNOWN, MARKER})
        linked = sorted(name for name in entries if (folder / name).is_symlink())
        if strange or linked:
            reason = f"it holds {(strange or linked)[0]!r}"
        elif "volpatch" not in read_marker(folder) and not _is_bare(folder, entries):
            reason = f"it has no {MARKER} of ours"
        else:
            return
    raise TargetError(
        f"{str(folder)!r} is needed to build the output, but volpatch did not make it ({reason}), "
        "so it is left alone; move it away, or choose another output name"
    )


def _is_bare(folder: Path, entries: set[str]) -> bool:
    """Whether a folder is as `prepare` leaves it when killed before the marker is there."""
    if entries - {"tmp"} or (entries and not (folder / "tmp").is_dir()):
        return False
    temps = os.listdir(folder / "tmp") if entries else []
    return all(re.fullmatch(r"\d+-[0-9a-f]{32}|claim-[a-z.]+", name) for name in temps)


def read_marker(folder: Path) -> dict[str, Any]:
    return _json_file(folder / MARKER)


def _json_file(path: Path) -> dict[str, Any]:
    """A small JSON object from disk; empty where there is none that can be read."""
    try:
        if not path.is_file() or path.stat().st_size > _JSON_LIMIT:
            return {}
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def work_folder(target: Path) -> Path:
    return target.with_name(target.name + SUFFIX)


@contextmanager
def disk_errors(path: Path, outcome: str = "nothing was published") -> Iterator[None]:
    """Turn what the operating system says into a RunError that names the place."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "remove the cause")
        raise RunError(
            f"cannot write {str(path)!r}: {error.strerror or error}; {outcome}. "
            f"To go on, {advice} and run again"
        ) from error


_FOREIGN = "let its owner change the permissions (it may be another user's), or choose another name"
_ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EACCES: _FOREIGN,
    errno.EPERM: _FOREIGN,
}
