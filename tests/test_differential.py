"""All options at random: every path gives the same bits, and those that brute force gives.

A failure prints a case that fails and is as small as could be found. As a test of its own it is
`check(Case(...))`.
"""

from __future__ import annotations

import functools
import itertools
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import dask.array
import numpy as np
import pytest
import zarr

import volpatch
from tests.brute_force import Expected, Refused, expected, full_mask, named_dims, with_names
from tests.differential import Case, Quiet
from tests.drawing import NARROW, draw, shrunk
from volpatch import (
    ClippedWarning,
    Merger,
    PatchGrid,
    VolpatchError,
    extract,
    map_patches,
    merge,
    to_zarr,
)

Array = np.ndarray
IN_MEMORY, STORED = 2400, 8  # cases; and blocks of some


@contextmanager
def told() -> Iterator[list[Any]]:
    """What is warned of inside of it; tests are ended by warnings otherwise."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield found
    for one in found:
        assert one.category is ClippedWarning, f"{one.category}: {one.message}"


def same(got: Any, wanted: Array) -> None:
    """The same bits; NaNs may carry others."""
    values = np.asarray(got)
    assert values.dtype == wanted.dtype
    assert values.shape == wanted.shape
    if wanted.dtype.kind == "f":
        nan = np.isnan(wanted)
        np.testing.assert_array_equal(np.isnan(values), nan)
        values, wanted = np.where(nan, 0, values), np.where(nan, 0, wanted)
    assert values.tobytes() == wanted.tobytes()


def ways(case: Case) -> random.Random:
    return random.Random(case.seed)


def own_mask(case: Case) -> Any:
    """The mask as an array without a place of its own, None without a mask."""
    if case.mask is None or case.mask.first is None:
        return None if case.mask is None else case.mask.values()
    return full_mask(case)


def in_memory(case: Case, **more: Any) -> Array:
    said = {**case.said(own_mask(case)), **more}
    return map_patches(case.called(), case.volume(), case.said_patch(), **said)


# -- the paths -----------------------------------------------------------------------------


def with_workers(case: Case, wanted: Array, aim: Expected) -> None:
    order = np.asfortranarray(case.volume())
    said = case.said(own_mask(case))
    same(map_patches(case.called(), order, case.said_patch(), workers=3, **said), wanted)


def with_other_batches(case: Case, wanted: Array, aim: Expected) -> None:
    said = {**case.said(own_mask(case)), "batch_size": 4}
    got = map_patches(Quiet(case.function, True), case.volume(), case.said_patch(), **said)
    same(got, wanted)


def of_dask(case: Case, wanted: Array, aim: Expected) -> None:
    rng = ways(case)
    lazy = dask.array.from_array(case.volume(), chunks=chunks_of(rng, case.shape))
    got = map_patches(case.called(), lazy, case.said_patch(), **case.said(own_mask(case)))
    assert got.shape == wanted.shape
    assert got.dtype == wanted.dtype
    same(got.compute(scheduler="sync"), wanted)


def of_xarray(case: Case, wanted: Array, aim: Expected) -> None:
    rng = ways(case)
    data: Any = case.volume()
    if rng.random() < 0.4:
        data = dask.array.from_array(data, chunks=chunks_of(rng, case.shape))
    given = case.labelled(data)
    mask = case.labelled_mask() if case.mask and case.mask.first else own_mask(case)
    patch = dict(zip(case.patched, case.patch, strict=True))
    got = map_patches(case.called(), given, patch, **case.said(mask))
    assert got.attrs == given.attrs
    assert got.name == given.name
    dims = named_dims(case, aim.dims)
    assert len(set(got.dims)) == len(dims)
    assert all(d in (one, "c", "channel") for d, one in zip(got.dims, dims, strict=True))
    part = given.isel({name: slice(a, b) for name, a, b in case.roi})
    for name in case.spacing.keys() & set(got.dims):
        assert got.coords[name].equals(part.coords[name])
    with dask.config.set(scheduler="sync"):
        same(got.values, with_names(case, aim.dims, wanted))


def without_holes(case: Case, wanted: Array, aim: Expected) -> None:
    """Skipped patches change nothing that they do not touch."""
    if (case.mask is None and case.skip is None) or case.nan_policy == "raise":
        return
    if case.input_dtype in NARROW:  # what is skipped may not fit
        return
    said = {k: v for k, v in case.said().items() if k not in ("mask", "mask_factor", "skip")}
    full = map_patches(case.called(), case.volume(), case.said_patch(), **said)
    at = [aim.dims.index(d) for d in case.patched]
    shape = [n if i in at else 1 for i, n in enumerate(wanted.shape)]
    untouched = np.broadcast_to(~aim.touched.reshape(shape), wanted.shape)
    if case.nan_policy != "omit":
        same(full[untouched], wanted[untouched])


def by_halves(case: Case, wanted: Array, aim: Expected) -> None:
    """extract, the function, merge; and a Merger that gets the patches one by one."""
    plain = case.mask is None and case.skip is None and not case.roi
    if not plain or case.channel_axis or case.finalize or case.input_dtype or not at_the_end(case):
        return
    grid = PatchGrid(case.sizes, case.patch, case.stride, edge=case.edges, offset=case.offsets)
    volume = case.volume().astype(np.dtype(case.dtype).newbyteorder("="))
    patches = extract(volume, grid, pad_mode=case.pad_mode, pad_value=case.pad_value)
    rng, lead, n = ways(case), len(case.lead), grid.ndim
    if not len(grid):
        return
    again = dask.array.from_array(volume, chunks=chunks_of(rng, volume.shape))
    lazy = extract(again, grid, pad_mode=case.pad_mode, pad_value=case.pad_value)
    same(lazy.compute(scheduler="sync"), np.asarray(patches))
    function = Quiet(case.function)
    many = patches.reshape(-1, *case.patch)
    values = np.stack([function(p.copy()) for p in many])
    values = values.astype(values.dtype.newbyteorder("="))
    several = values.ndim > n + 1
    own = values.shape[1:2] if several else ()
    values = values.reshape(*volume.shape[:lead], len(grid), *own, *case.patch)
    said = case.said()
    said = {k: said[k] for k in ("reduce", "nan_policy", "fill_value", "dtype") if k in said}
    said["window"] = None if case.window is None else tuple(case.said()["window"].values()
                     if case.by_name else case.said()["window"])  # fmt: skip
    first = np.moveaxis(values, lead, lead + len(own))
    first = first.reshape(*volume.shape[:lead], *own, *grid.lattice, *case.patch)
    same(merge(first, grid, **said), wanted)
    sizes = (*first.shape[: first.ndim - n], *case.patch)
    pieces = [rng.randint(1, max(1, m)) for m in first.shape[: first.ndim - n]]
    lazy = dask.array.from_array(first, chunks=(*pieces, *sizes[-n:]))
    same(merge(lazy, grid, **said).compute(scheduler="sync"), wanted)
    for place in np.ndindex(volume.shape[:lead]):
        merger = Merger(grid, **said)
        for index in range(len(grid)):
            merger.add(index, values[(*place, index)])
        same(merger.result(), wanted[place])


PATHS = (with_workers, with_other_batches, of_dask, of_xarray, without_holes, by_halves)


def at_the_end(case: Case) -> bool:
    return case.dims[len(case.dims) - len(case.patched) :] == case.patched


def chunks_of(rng: random.Random, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Chunks of random and unequal sizes."""
    chunks = []
    for n in shape:
        sizes = []
        while sum(sizes) < n:
            sizes.append(rng.randint(1, n - sum(sizes)))
        chunks.append(tuple(sizes))
    return tuple(chunks)


# -- the comparison ------------------------------------------------------------------------


def check(case: Case, paths: tuple[Callable[..., None], ...] = PATHS) -> None:
    """Compare a case with brute force, and all paths with each other."""
    try:
        aim = expected(case)
    except Refused as why:
        with told(), pytest.raises(VolpatchError):
            pytest.fail(f"{why}, but this came back: {in_memory(case)}")
        return
    with told() as found:
        got = in_memory(case)
        assert bool(found) or not aim.misfits[0]
        assert aim.misfits[1] or not found
        assert got.dtype == aim.dtype
        assert got.shape == aim.low.shape
        wrong = aim.wrong(got)
        if wrong.any():
            at = tuple(map(int, np.argwhere(wrong)[0]))
            pytest.fail(
                f"{wrong.sum()} of {wrong.size} values are wrong; at {at}: {got[at]!r}, not "
                f"between {aim.low[at]!r} and {aim.high[at]!r}"
            )
        for path in paths:
            path(case, got, aim)


def explained(case: Case, paths: tuple[Callable[..., None], ...]) -> None:
    """Check a case; a failure shows a smaller one."""

    def fails(one: Case) -> bool:
        try:
            check(one, paths)
        except (Exception, pytest.fail.Exception):  # another failure is as good
            return True
        return False

    try:
        check(case, paths)
    except (Exception, pytest.fail.Exception) as error:
        small = shrunk(case, fails)
        raise AssertionError(f"{error}\n\ncase:    {case!r}\nsmaller: {small!r}") from error


# -- store to store ------------------------------------------------------------------------


def storable(case: Case) -> bool:
    """Whether an OME-Zarr can hold volume and result: t, c, then space."""
    if len(case.dims) < 2 or not set(case.patched) <= set("zyx"):
        return False
    try:
        aim = expected(case)
    except Refused:
        return False
    dims = named_dims(case, aim.dims)
    if {"c", "new"} <= set(dims):
        return False
    space = [d in "zyx" for d in dims]
    return sum(space) >= 2 and space == sorted(space)


@dataclass(frozen=True)
class Stored:
    """How a case is run from store to store, drawn from its seed."""

    case: Case
    folder: Path

    def source(self) -> Path:
        case, rng = self.case, ways(self.case)
        path = self.folder / "in.zarr"
        if case.mask is not None and case.mask.first is not None:
            to_zarr(case.labelled(case.volume()), path, durability="process")
            return path
        chunks = tuple(rng.randint(1, n) for n in case.shape)
        shards = tuple(c * rng.randint(1, 2) for c in chunks) if rng.random() < 0.3 else None
        array = zarr.create_array(
            path,
            shape=case.shape,
            dtype=case.dtype,
            chunks=chunks,
            shards=shards,
            dimension_names=case.dims,
        )
        array[...] = case.volume()
        return path

    def mask(self) -> Any:
        """An array, or the path of a stored one; with a place or without."""
        case, path = self.case, self.folder / "mask.zarr"
        if case.mask is None:
            return None
        if case.mask.first is not None:
            if len(case.patched) < 2:
                return case.labelled_mask()
            to_zarr(case.labelled_mask(), path, durability="process")
            return path
        if len(case.patched) < 2 or ways(case).random() < 0.5:
            return case.mask.values()
        zarr.save_array(path, case.mask.values())
        return path

    def options(self) -> dict[str, Any]:
        case, rng = self.case, ways(self.case)
        chunks = tuple(rng.randint(1, n) for n in case.sizes)
        shards = tuple(c * rng.randint(1, 2) for c in chunks) if rng.random() < 0.4 else None
        more: dict[str, Any] = {
            "chunks": chunks,
            "shards": shards,
            "region": tuple(u * rng.randint(1, 3) for u in shards or chunks),
            "workers": rng.randint(1, 3),
            "durability": "process",
            "memory_limit": "4GiB",
        }
        said = case.said(self.mask())
        for name in ("stride", "overlap", "window", "patch"):  # the names of a store are its axes'
            if name in said and not isinstance(said[name], dict):
                said[name] = dict(zip(case.patched, said[name], strict=True))
        return {**said, **more, "patch": dict(zip(case.patched, case.patch, strict=True))}


def others(case: Case) -> tuple[Callable[[Array], Array], ...]:
    """Functions that are not the case's: by their code, by what they carry, by their object."""
    own = case.called()

    def with_default(given: Array, times: int = 3) -> Array:
        return own(given)

    return with_default, functools.partial(own), Quiet("other", own.batched)


def check_stored(case: Case, folder: Path) -> None:
    """Run a case from store to store, at once or in parts."""
    stored, rng = Stored(case, folder), ways(case)
    source, target, options = stored.source(), folder / "out.zarr", stored.options()
    with told():
        wanted = in_memory(case)
        parts = rng.choice([None, None, 2, 3])
        order = [None] if parts is None else rng.sample(range(parts), parts)
        complete = False
        for done, part in enumerate(order):
            said = {**options, "part": None if part is None else f"{part}/{parts}"}
            if done == 1 and not complete:
                with pytest.raises(VolpatchError, match="function"):
                    volpatch.run(rng.choice(others(case)), source, target, **said)
            if not complete:  # where there are fewer regions than parts
                complete = volpatch.run(case.called(), source, target, **said).complete
        assert complete
        got = zarr.open_array(target / "scale0" / "image", mode="r")[...]
        same(got, with_names(case, expected(case).dims, wanted))


# -- tests ---------------------------------------------------------------------------------

BLOCK = 100


def check_block(block: int) -> None:
    for number in range(block * BLOCK, (block + 1) * BLOCK):
        explained(draw(number), (PATHS[number % len(PATHS)],))


def check_stored_block(block: int, count: int, folder: Path) -> None:
    cases = (case for case in map(draw, itertools.count(block * 1000)) if storable(case))
    for case in itertools.islice(cases, count):
        here = folder / str(case.seed)
        here.mkdir()
        try:
            check_stored(case, here)
        except (Exception, pytest.fail.Exception) as error:
            raise AssertionError(f"{error}\n\nfrom store to store: {case!r}") from error


@pytest.mark.parametrize("block", range(IN_MEMORY // BLOCK))
def test_all_paths_in_memory_agree_with_brute_force(block):
    check_block(block)


@pytest.mark.parametrize("block", range(STORED))
def test_runs_have_the_bits_of_memory(block, tmp_path):
    check_stored_block(block, 15, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(IN_MEMORY // BLOCK, 30_000 // BLOCK))
def test_many_more_agree_with_brute_force(block):
    check_block(block)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(STORED, 10 * STORED))
def test_many_more_runs_have_the_bits_of_memory(block, tmp_path):
    check_stored_block(block, 15, tmp_path)
