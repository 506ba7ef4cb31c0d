"""Draw random cases over all options, and make a case that fails smaller."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.differential import (
    CALLABLE,
    LABELS,
    NAMED,
    ODD,
    PLAIN,
    SEVERAL,
    SKIPS,
    WHOLE,
    Array,
    Case,
    Mask,
    Quiet,
)

MOST_PATCHES = 60
NARROW = ("int16", "float16")  # of what is given to the function


def draw(number: int) -> Case:
    """The case with this number; always the same."""
    rng = random.Random(number)
    while True:
        case = _drawn(rng, number)
        if case is not None:
            return case


def _drawn(rng: random.Random, number: int) -> Case | None:
    ndim = rng.choice([1, 2, 2, 2, 3, 3, 3, 4])
    dims = ("t", "c", "z", "y", "x")[-ndim:]
    patched, channel = _roles(rng, dims)
    sizes = {d: rng.randint(1, (40, 14, 8, 6)[len(patched) - 1]) for d in patched}
    shape = tuple(sizes.get(d, rng.choice([1, 2, 2, 3])) for d in dims)
    n = len(patched)
    edge = _each(rng, n, ["shift", "shift", "pad", "drop"])
    patch = tuple(
        rng.randint(1, sizes[d] if e == "shift" else sizes[d] + 3)
        for d, e in zip(patched, edge, strict=True)
    )
    wide = rng.random() < 0.15
    stride = tuple(rng.randint(1, p + (3 if wide else 0)) for p in patch)
    offset = tuple(rng.choice([0, 0, 1, 2]) for _ in patch) if rng.random() < 0.1 else None
    if math.prod(s // t + 1 for s, t in zip(sizes.values(), stride, strict=True)) > MOST_PATCHES:
        return None
    reduce = rng.choice(["mean"] * 7 + ["sum", "max", "min"])
    holes = rng.random() < 0.35
    case = Case(
        dims=dims,
        shape=shape,
        patched=patched,
        patch=patch,
        stride=stride,
        channel_axis=channel,
        seed=number,
        edge=edge if set(edge) != {"shift"} else None,
        offset=offset,
        pad_mode=rng.choice(["reflect", "reflect", "symmetric", "edge", "constant"]),
        pad_value=rng.choice([0, 1]),
        reduce=reduce,
        nan_policy=rng.choice(["propagate"] * 6 + ["omit"] * 3 + ["raise"]),
        batch_size=rng.choice([None, None, 1, 2, 3, 7]),
        as_overlap=rng.random() < 0.2 and all(s <= p for p, s in zip(patch, stride, strict=True)),
        by_name=rng.random() < 0.5 or patched != _last(dims, channel, n),
    )
    case = _with_values(rng, case)
    if reduce == "mean":
        case = dataclasses.replace(case, window=_window(rng, n))
    if holes:
        case = dataclasses.replace(case, **_holes(rng, case))
    case = _with_result(rng, case)
    narrow = case.input_dtype in NARROW  # outside of a roi nothing need be seen
    if not narrow and case.nan_policy != "raise" and rng.random() < 0.3:
        case = dataclasses.replace(case, roi=_roi(rng, case))
    return case


def _last(dims: tuple[str, ...], channel: str | None, n: int) -> tuple[str, ...]:
    return tuple(d for d in dims if d != channel)[-n:]


def _each(rng: random.Random, n: int, kinds: list[str]) -> tuple[str, ...]:
    """One kind for all axes as a rule, else one each."""
    if rng.random() < 0.7:
        return (rng.choice(kinds),) * n
    return tuple(rng.choice(kinds) for _ in range(n))


def _roles(rng: random.Random, dims: tuple[str, ...]) -> tuple[tuple[str, ...], str | None]:
    """Which axes are patched, and which is handed whole to the function."""
    channel = None
    if len(dims) > 1 and rng.random() < 0.25:
        channel = "c" if "c" in dims and rng.random() < 0.7 else rng.choice(dims)
    rest = [d for d in dims if d != channel]
    n = rng.randint(1, len(rest))
    if rng.random() < 0.75:
        return tuple(rest[-n:]), channel
    chosen = set(rng.sample(rest, n))
    return tuple(d for d in rest if d in chosen), channel


def _with_values(rng: random.Random, case: Case) -> Case:
    """Dtype, content and function."""
    kinds = ["float32"] * 5 + ["float64", "float16", "uint8", "uint16", "int16", "int64", "uint64"]
    dtype = rng.choice([*kinds, "bool", ">u2", ">f4"])
    contents = ["distinct"] * 4 + ["wide", "largest", "smallest"]
    contents += {"f": ["nan", "nan", "infinite"], "b": []}.get(np.dtype(dtype).kind, ["exact"])
    functions: tuple[Callable[[Array], Array], ...] = PLAIN + PLAIN + ODD + LABELS + SEVERAL
    if case.channel_axis is not None:
        functions = WHOLE
    input_dtype = None
    if rng.random() < 0.12 and np.dtype(dtype).kind in "biuf":
        wider = {"uint8": "uint16", "bool": "uint8", "uint16": "float32", "float32": "float64"}
        input_dtype = rng.choice([wider.get(dtype, "float64"), "float64", *NARROW])
    return dataclasses.replace(
        case,
        dtype=dtype,
        content=rng.choice(contents),
        function=rng.choice(functions).__name__,
        input_dtype=input_dtype,
    )


def _window(rng: random.Random, n: int) -> tuple[str, ...] | None:
    if rng.random() < 0.25:
        return ("crop",) * n
    kinds = [*NAMED, *NAMED, *NAMED, *(k for k in CALLABLE if k != "gap")]
    return None if rng.random() < 0.15 else _each(rng, n, kinds + ["gap"] * (rng.random() < 0.1))


def _holes(rng: random.Random, case: Case) -> dict[str, Any]:
    """A mask, or a rule by which patches are skipped, or both."""
    found: dict[str, Any] = {}
    if rng.random() < 0.75:
        found["mask"] = _mask(rng, case)
    if not found or rng.random() < 0.3:
        found["skip"] = rng.choice([*SKIPS, 1, 100.0, 700])
    return found


def _mask(rng: random.Random, case: Case) -> Mask:
    common = {
        "share": rng.choice([0.0, 0.02, 0.1, 0.3, 0.3, 1.0]),
        "seed": rng.randrange(1000),
        "dtype": rng.choice(["bool", "uint8", "float32"]),
    }
    kind = rng.choice(["full", "full", "cells", "cells", "factor", "placed", "placed", "odd"])
    if kind == "full":
        return Mask(case.sizes, **common)
    if kind == "odd":  # may have no whole cell size: then it is refused
        return Mask(tuple(rng.randint(1, n) for n in case.sizes), **common)
    factor = tuple(rng.randint(1, min(n + 1, 5)) for n in case.sizes)
    if kind == "placed" and set(case.patched) <= set(case.spacing) and min(case.sizes) > 1:
        cells = tuple(rng.randint(2, 5) for _ in factor)  # one alone does not tell its size
        first = tuple(rng.randint(-4, n) for n in case.sizes)
        # where the first centres agree, a mask may as well be meant to begin with the volume
        if all(2 * a + k != 1 or k == 1 for a, k in zip(first, factor, strict=True)):
            return Mask(cells, factor=factor, first=first, **common)
    up = rng.random() < 0.6
    cells = tuple(
        -(-n // k) if up else max(1, n // k) for n, k in zip(case.sizes, factor, strict=True)
    )
    return Mask(cells, factor=factor if kind == "factor" else None, **common)


def _with_result(rng: random.Random, case: Case) -> Case:
    """The output's dtype, fill and finalize, mostly such that they can be."""
    given = case.input_dtype or np.dtype(case.dtype).newbyteorder("=")
    leading = () if case.channel_axis is None else (2,)
    result = Quiet(case.function)(np.ones((*leading, *case.patch), given))
    averaged = case.reduce == "mean" and not case.crop
    out = None
    if result.dtype.kind in "iub" and averaged and rng.random() < 0.95:
        out = rng.choice([str(result.dtype.newbyteorder("=")), "float32", "int16", "uint8"])
        out = "float64" if out == "bool" else out
    elif rng.random() < 0.25:
        out = rng.choice(["uint8", "int16", "int32", "float64", "float32", "float16"])
    finalize = None
    if rng.random() < 0.15:
        several = result.ndim > len(case.patch)
        finalize = rng.choice(["total", "brightest", "halved"] if several else ["halved", "both"])
        if case.reduce != "mean" and finalize != "halved":
            finalize = None
    whole = (out or str(result.dtype)) not in ("float16", "float32", "float64", ">f4")
    fill = rng.choice([None, 0, 1, 1] if whole or finalize else [None, -5.0, 7, math.nan, math.inf])
    if fill is None and _leaves_gaps(case) and rng.random() < 0.95:
        fill = 1
    said = None
    if rng.random() < 0.1:
        several = result.ndim > len(case.patch)
        said = result.shape[0] if several and rng.random() < 0.8 else rng.choice([1, 2])
    return dataclasses.replace(
        case, out_dtype=out, fill_value=fill, finalize=finalize, out_channels=said
    )


def _leaves_gaps(case: Case) -> bool:
    steps = zip(case.patch, case.stride, strict=True)
    return case.offset is not None or "drop" in case.edges or any(s > p for p, s in steps)


def _roi(rng: random.Random, case: Case) -> tuple[tuple[str, int, int], ...]:
    chosen = []
    for d, n in zip(case.dims, case.shape, strict=True):
        if rng.random() < 0.7:
            start = rng.randrange(n)
            chosen.append((d, start, rng.randint(start + 1, n)))
    return tuple(chosen)


# -- making smaller ------------------------------------------------------------------------


def smaller(case: Case) -> Iterator[Case]:
    """Simpler cases: an option left out, an axis shorter."""
    for f in dataclasses.fields(case):
        if f.default is not dataclasses.MISSING and getattr(case, f.name) != f.default:
            yield dataclasses.replace(case, **{f.name: f.default})
    for axis, n in enumerate(case.shape):
        for less in {1, n // 2, n - 1} - {0, n}:
            yield dataclasses.replace(
                case, shape=(*case.shape[:axis], less, *case.shape[axis + 1 :])
            )
    for name in ("patch", "stride"):
        values = getattr(case, name)
        for axis, n in enumerate(values):
            for less in {1, n // 2, n - 1} - {0, n}:
                yield dataclasses.replace(
                    case, **{name: (*values[:axis], less, *values[axis + 1 :])}
                )


def shrunk(case: Case, fails: Callable[[Case], bool], tries: int = 400) -> Case:
    """A simpler case that fails too."""
    found = True
    while found and tries > 0:
        found = False
        for one in smaller(case):
            tries -= 1
            if fails(one):
                case, found = one, True
                break
    return case
