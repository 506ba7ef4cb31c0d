"""Whether an input is still what it was: how its files look, and what was made of which.

The plan's maker looks at the files once and writes down what it saw. Whoever goes on looks
again. A file that changed meanwhile is accepted where nothing that is done was made of it,
which is the case of a damaged file that was restored: the regions that need it had failed.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from volpatch.core.errors import SourceError
from volpatch.core.options import check_choice
from volpatch.planning.pieces import needed
from volpatch.planning.plan import Plan
from volpatch.storage.open import missing_of
from volpatch.storage.plan_file import digest
from volpatch.storage.volume import Source

MOST_OBJECTS = 1000
MOST_COUNTED = 100_000  # files of which each is asked for whether it is there
Looks = list[list[int] | None]  # size and time of change of files; None for one that is absent


def fingerprint(source: Source, how: str = "sample") -> tuple[dict[str, Any], Looks]:
    """What an input is, and how its files look.

    Parameters
    ----------
    source : Source
    how : {"sample", "full"}
        Look at 1,000 evenly chosen files at most, or at all.

    Returns
    -------
    identity : dict
        JSON values. Another one means another input; the same one that it very probably
        is the same.
    looks : list
        Size and time of change of each file that was looked at; see `watched`.
    """
    check_choice("fingerprint", how)
    metadata = hashlib.sha256()
    try:
        for path in source.reader.metadata_files:
            metadata.update(Path(path).read_bytes())
        looks = [_look(source.reader.file(number)) for number in watched(source, how)]
    except OSError as error:
        raise SourceError(f"{source.path} can no longer be read: {error}; restore it") from error
    return {
        "path": os.path.realpath(source.path),
        "level": source.level,
        "series": source.series,
        "shape": list(source.shape),
        "dtype": str(source.dtype),
        "metadata": metadata.hexdigest(),
        "files": how,
        "data": digest(looks),
    }, looks


def watched(source: Source, how: str) -> Iterator[int]:
    """Numbers of the files that are looked at."""
    count = source.reader.n_files
    step = 1.0 if how == "full" else max(1.0, count / MOST_OBJECTS)
    return (int(i * step) for i in range(math.ceil(count / step)) if int(i * step) < count)


def absent_files(source: Source) -> tuple[str, ...]:
    """A remark where chunks of a volume are not stored, and stand for its fill value."""
    if missing_of(source) != "fill":
        return ()
    count = source.reader.n_files
    numbers = range(count) if count <= MOST_COUNTED else watched(source, "sample")
    looked, absent = 0, 0
    for number in numbers:
        looked += 1
        absent += not os.path.exists(source.reader.file(number))
    if not absent:
        return ()
    most = "" if looked == count else f", as far as {looked:,} that were looked at tell"
    share = f"{absent:,} of {count:,}" if looked == count else f"{absent / looked:.0%} of {count:,}"
    return (
        f"{share} chunks are not stored{most}, and read as the fill value; missing='error' "
        f"refuses them",
    )


def _look(path: str) -> list[int] | None:
    try:
        state = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return [state.st_size, state.st_mtime_ns]


def changed_files(source: Source, how: str, before: Looks, now: Looks) -> list[int]:
    """Numbers of the files that look otherwise than before."""
    pairs = zip(watched(source, how), before, now, strict=True)
    return [number for number, old, new in pairs if old != new]


def regions_reading(
    plan: Plan, source: Source, files: Iterable[int], regions: Iterable[int]
) -> list[int]:
    """Those of `regions` that read any voxel of some of an input's files."""
    boxes = [source.file_box(number) for number in files]
    return [n for n in regions if any(_meet(reads(plan, n), box) for box in boxes)]


def reads(plan: Plan, region: int) -> tuple[slice, ...]:
    """What a region reads of the input, over all axes; padding at the far end is read too."""
    lead, box = plan.region_box(region)
    axes = zip(plan.blending.grid.axes, box.start, box.stop, strict=True)
    spans = []
    for axis, start, stop in axes:
        numbers = needed(axis, plan.blending.owns, start, stop)
        first = axis.start(numbers[0]) if numbers else start
        last = axis.start(numbers[-1]) + axis.patch if numbers else start
        # what hangs over the end mirrors what lies before it
        spans.append(slice(max(0, min(first, 2 * axis.size - last - 1)), min(last, axis.size)))
    chosen = [slice(a, b) for a, b in zip(plan.roi.start, plan.roi.stop, strict=True)]
    for number, index in zip(plan.layout.lead, lead, strict=True):
        chosen[number] = slice(index, index + 1)
    for number, span in zip(plan.layout.patched, spans, strict=True):
        chosen[number] = span
    return tuple(chosen)


def _meet(one: tuple[slice, ...], other: tuple[slice, ...]) -> bool:
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(one, other, strict=True))


def overlaid(looks: Looks, source: Source, how: str, accepted: Mapping[int, Any]) -> Looks:
    """What was seen first, with what was accepted since."""
    pairs = zip(watched(source, how), looks, strict=True)
    return [accepted.get(number, old) for number, old in pairs]
