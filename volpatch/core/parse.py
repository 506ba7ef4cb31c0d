"""The user's many ways to say a thing, and the one form that is used inside.

Sizes and rois come as numbers, sequences, mappings by axis name, or text from a
command line; they leave as tuples with one value per axis.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from volpatch.core.box import Box
from volpatch.core.errors import GridError, SettingError
from volpatch.core.numbers import Numbers

_UNITS = {"k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def parse_bytes(value: int | str, what: str = "memory_limit") -> int:
    """Bytes from a number, or from text with a unit.

    >>> parse_bytes("2GiB"), parse_bytes("1.5 MB")
    (2147483648, 1500000)
    """
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kmgtp]?)(i?)b\s*", value.lower())
        if match is None:
            raise SettingError(f"{what} must be a size with a unit, such as 2GiB; got {value!r}")
        number, unit, binary = match.groups()
        value = int(float(number) * (1024 if binary else 1000) ** _UNITS.get(unit, 0))
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise SettingError(f"{what} must be a positive number of bytes or '2GiB'; got {value!r}")
    return value


def show_bytes(number: float) -> str:
    """A size for people, in binary units.

    >>> show_bytes(3 * 2**30), show_bytes(512)
    ('3.0 GiB', '512 B')
    """
    if number < 1024:
        return f"{number:.0f} B"
    power = min(5, int(math.log(number, 1024)))
    return f"{number / 1024**power:.{1 if number / 1024**power < 100 else 0}f} {' KMGTP'[power]}iB"


def printable(line: str) -> str:
    """Names in a volume may hold what moves the cursor or hides a line; show it as escapes."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in line
    )


def show_numbers(numbers: Iterable[int], most: int | None = None) -> str:
    """Rising numbers in the form that `--array` of a batch system takes, ranges joined.

    >>> show_numbers([0, 3, 4, 5, 9]), show_numbers([1, 3, 5, 7], most=2)
    ('0,3-5,9', '1,3,...')
    """
    runs: list[tuple[int, int]] = []
    if isinstance(numbers, Numbers):
        runs = [(run[0], run[-1]) for run in numbers.ranges[: None if most is None else most + 1]]
        shown = [*map(_run_text, runs[:most])]
        return ",".join([*shown, *["..."][: len(runs) - len(shown)]])
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = runs[-1][0], number
        elif most is not None and len(runs) == most:
            return ",".join([*map(_run_text, runs), "..."])
        else:
            runs.append((number, number))
    return ",".join(map(_run_text, runs))


def _run_text(run: tuple[int, int]) -> str:
    return str(run[0]) if run[0] == run[1] else f"{run[0]}-{run[1]}"


def parse_part(part: str | Sequence[int] | None) -> tuple[int, int] | None:
    """Part i of n, i from 0, from "i/n" or a pair.

    >>> parse_part("2/8")
    (2, 8)
    """
    if part is None:
        return None
    if isinstance(part, str):
        match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", part, re.ASCII)
        pair: Sequence[Any] = match.groups() if match else ()
    else:
        pair = part if isinstance(part, Sequence) else ()
    try:
        i, n = (int(x) if isinstance(x, str) else operator.index(x) for x in pair)
    except (TypeError, ValueError):
        raise SettingError(
            f"part must be written i/n, such as 0/8 for the first of eight; got {part!r}"
        ) from None
    if not 0 <= i < n:
        raise SettingError(
            f"part {i}/{n} does not exist: i counts from 0, so i/{n} goes "
            + (f"from 0/{n} to {n - 1}/{n}" if n > 0 else "nowhere; n must be at least 1")
        )
    return i, n


def by_axis(value: Any, dims: Sequence[str], what: str) -> Any:
    """A mapping by axis name as a tuple in the order of `dims`; anything else as it is."""
    if not isinstance(value, Mapping):
        return value
    if set(value) != set(dims):
        raise GridError(
            f"{what} names the axes {sorted(map(str, value))}, but {list(dims)} are patched"
        )
    return tuple(value[d] for d in dims)


def parse_roi(
    roi: Any,
    dims: Sequence[str],
    shape: Sequence[int],
    names: Mapping[str, Sequence[str]] | None = None,
) -> Box:
    """The part of a volume that a roi selects, as a box over all axes.

    Parameters
    ----------
    roi : None, text ("0:64,:,100:612" or "z=0:64,c=DAPI"), a mapping by axis name, or a
        sequence of slices and numbers for the last axes. A number keeps its axis, with
        length 1; negative numbers count from the end.
    names : of the indices of axes that have any, channels above all. A number that is no
        index, such as the 488 of a wavelength, is looked for there too.
    """
    chosen: dict[str, Any] = {}
    if isinstance(roi, str):
        roi = _roi_from_text(roi)
    if isinstance(roi, Box):
        roi = roi.slices
    if isinstance(roi, Mapping):
        chosen = dict(roi)
    elif roi is not None:
        parts = tuple(roi) if isinstance(roi, Sequence) else (roi,)
        if len(parts) > len(dims):
            raise GridError(f"roi has {len(parts)} parts, but the axes are {tuple(dims)}")
        chosen = dict(zip(dims[len(dims) - len(parts) :], parts, strict=True))
    unknown = [name for name in chosen if name not in dims]
    if unknown:
        raise GridError(f"roi names axis {unknown[0]!r}, but the axes are {tuple(dims)}")
    bounds = [
        _bounds(chosen.get(name), name, size, (names or {}).get(name))
        for name, size in zip(dims, shape, strict=True)
    ]
    return Box(tuple(a for a, _ in bounds), tuple(b for _, b in bounds))


def _roi_from_text(text: str) -> Any:
    parts = [part.strip() for part in text.split(",")]
    named = [part.partition("=") for part in parts]
    if any(equals for _, equals, _ in named):
        if not all(equals for _, equals, _ in named):
            raise GridError(f"roi {text!r} mixes named and unnamed axes; name all or none")
        names = [name.strip() for name, _, _ in named]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise GridError(f"roi {text!r} names axis {repeated[0]!r} twice; name each once")
        return {name.strip(): _range_from_text(value.strip()) for name, _, value in named}
    return [_range_from_text(part) for part in parts]


def _range_from_text(text: str) -> Any:
    if ":" not in text:
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else text
    bounds = [part.strip() for part in text.split(":")]
    if len(bounds) != 2 or not all(re.fullmatch(r"([+-]?\d+)?", b) for b in bounds):
        raise GridError(f"roi part {text!r} is no range; write start:stop, such as 0:64")
    return slice(*(int(b) if b else None for b in bounds))


def _bounds(part: Any, name: str, size: int, labels: Sequence[str] | None) -> tuple[int, int]:
    """[start, stop) that one part of a roi selects on one axis."""
    if part is None:
        return 0, size
    if isinstance(part, bool):
        raise GridError(
            f"roi={part} on axis {name} is no part of it; write a range such as 0:64, or a number"
        )
    if isinstance(part, int) and not -size <= part < size and str(part) in (labels or ()):
        part = str(part)
    if isinstance(part, str):
        if labels is None or part not in labels:
            known = f"its names are {list(labels)}" if labels else "it has no names"
            raise GridError(f"roi asks for {part!r} on axis {name}, but {known}")
        if list(labels).count(part) > 1:
            where = [i for i, label in enumerate(labels) if label == part]
            raise GridError(
                f"roi asks for {part!r} on axis {name}, which is the name of {where}; "
                f"choose one by its number"
            )
        part = list(labels).index(part)
    if isinstance(part, slice):
        if part.step not in (None, 1):
            raise GridError(f"roi on {name} has step {part.step}; only steps of 1 are possible")
        bounds = [
            default if bound is None else _index(bound, name, size)
            for bound, default in ((part.start, 0), (part.stop, size))
        ]
        start, stop = bounds
    else:
        start = _index(part, name, size)
        stop = start + 1
    if not 0 <= start < stop <= size:
        raise GridError(
            f"roi {start}:{stop} on {name} selects nothing, or lies outside of its {size} voxels; "
            f"it must satisfy 0 <= start < stop <= {size}"
        )
    return start, stop


def _index(value: Any, name: str, size: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise GridError(f"roi on {name} must be whole numbers, got {value!r}") from None
    return number + size if number < 0 else number


def whole_counts(value: Any, default: Any, what: str) -> Any:
    """A count of at least one, or the default where none was given."""
    if value is None:
        return default
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise SettingError(f"{what} must be a whole number of at least 1, got {value!r}")
    return operator.index(value)
