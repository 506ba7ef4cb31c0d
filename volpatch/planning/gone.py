"""A volume that is gone, as the plan of the output that was made of it remembers it.

What was made stays good when the input has been moved to a tape. Whether a complete output is
that of the same job is then decided by all but the input's files.
"""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from volpatch.core.errors import SourceError
from volpatch.planning.inputs import Looks
from volpatch.storage.open import missing_of
from volpatch.storage.plan_file import PlanFile
from volpatch.storage.stores.local import SUFFIX
from volpatch.storage.volume import Source

_PER_AXIS = ("shape", "dims", "chunks", "shards", "spacing", "origin", "units", "channel_names")


@dataclass(frozen=True)
class GoneReader:
    """Stands where a reader should be: knows what was read once, and reads nothing.

    Attributes
    ----------
    identity, looks : the `fingerprint` of the input when the output was begun.
    missing : how chunks that are not stored were taken.
    """

    path: str
    identity: dict[str, Any]
    looks: Looks
    missing: str
    metadata_files: tuple[str, ...] = ()
    n_files: int = 0

    def read(self, selection: Any, out: Any) -> NoReturn:
        """Nothing can be read any more."""
        raise self.error

    def file(self, number: int) -> str:
        """There are no files."""
        raise self.error

    def file_box(self, number: int) -> tuple[slice, ...]:
        """There are no files."""
        raise self.error

    @property
    def error(self) -> SourceError:
        """What to raise where the volume itself is needed."""
        return SourceError(f"no such volume: {self.path!r}; restore it")


def remembered(source: Source) -> dict[str, Any]:
    """What `stand_in` needs, as JSON values."""
    found: dict[str, Any] = {"name": source.name, "dtype": str(source.dtype)}
    for name in _PER_AXIS:
        values = getattr(source, name)
        found[name] = None if values is None else list(values)
    return {**found, "missing": missing_of(source)}


def stand_in(
    path: Any, level: int, series: int | str | None, target: str | os.PathLike[str]
) -> Source | None:
    """The volume that was at a path, where it is gone and the output made of it is complete."""
    if not isinstance(path, str | os.PathLike) or os.path.exists(path):
        return None
    if glob.glob(os.fspath(path)):  # some files of a folder, which are there
        return None
    there = PlanFile.load(Path(target) / SUFFIX)
    words = None if there is None else there.layout.get("volume")
    if there is None or words is None:
        return None
    before = there.identity["source"]
    if [before[name] for name in ("path", "level", "series")] != [
        os.path.realpath(path),
        level,
        series,
    ]:
        return None
    axes: dict[str, Any] = {
        name: None if words[name] is None else tuple(words[name]) for name in _PER_AXIS
    }
    given = os.path.abspath(path)
    reader = GoneReader(given, before, there.layout["input"], words["missing"])
    return Source(
        path=given,
        level=level,
        series=series,
        kind="a volume that is gone",
        levels=1,
        name=words["name"],
        dtype=np.dtype(words["dtype"]),
        attributes={},
        reader=reader,
        order=tuple(range(len(words["dims"]))),
        **axes,
    )
