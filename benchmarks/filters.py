"""A filter on a volume, Zarr to Zarr, beside dask-image, and beside scipy on the whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import volpatch
from benchmarks import data
from benchmarks.harness import Job, Question
from benchmarks.store_contenders import target
from benchmarks.task import Figures, Task

Run = Callable[[], Any]
Words = Mapping[str, Any]


@dataclass(frozen=True)
class Size:
    shapes: Sequence[tuple[int, int, int]] = ((512,) * 3, (1024,) * 3)
    chunks: tuple[int, int, int] = data.CHUNKS
    block: tuple[int, int, int] = (128, 256, 256)  # of dask-image
    workers: int = 2
    only: str = ""  # filters whose names begin so
    runs: int = 5


FULL = Size()
SMALL = Size(((24, 40, 40),), (24, 24, 24), (24, 24, 24), runs=1)
# our name and parameters, and the same in scipy.ndimage and dask-image
FILTERS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "gaussian, sigma 2": ("gaussian", {"sigma": 2}, "gaussian_filter", {"sigma": 2}),
    "median, size 3": ("median", {"size": 3}, "median_filter", {"size": 3}),
}
# about the peak of dask-image at 512³, as the limit for ours
PEAK = "1000MiB"


def _volpatch(limit: str | None) -> Callable[..., Run]:
    def make(title: str, source: Path, made: Path, size: Words) -> Run:
        name, params, _, _ = FILTERS[title]
        return lambda: volpatch.run(
            name,
            source,
            made,
            kwargs=params,
            workers=size["workers"],
            memory_limit=limit,
            durability="process",
            overwrite=True,
        )

    return make


def _dask_image(by: str) -> Callable[..., Run]:
    """As its documentation shows: an array of dask, a filter, stored."""

    def make(title: str, source: Path, made: Path, size: Words) -> Run:
        import dask
        import dask.array as da
        from dask_image import ndfilters

        _, _, name, params = FILTERS[title]

        def run() -> None:
            volume = da.from_zarr(str(source), chunks=tuple(size[by]))
            if title.startswith("gaussian"):
                volume = volume.astype(np.float32)
            done = getattr(ndfilters, name)(volume, **params)
            if done.dtype.kind == "f":  # as ours: rounded to the dtype of the volume
                done = da.rint(done).astype(np.uint16)
            out = target(made, volume.shape, size["chunks"], done.dtype)
            with dask.config.set(scheduler="threads", num_workers=size["workers"]):
                done.to_zarr(out)

        return run

    return make


def scipy_whole(title: str, source: Path, made: Path, size: Words) -> Run:
    """The volume is in memory; nothing is read or written."""
    import zarr
    from scipy import ndimage

    _, _, name, params = FILTERS[title]
    volume = np.asarray(zarr.open_array(source, mode="r")[...])
    if title.startswith("gaussian"):
        volume = volume.astype(np.float32)
    return lambda: getattr(ndimage, name)(volume, **params)


CONTENDERS: dict[str, Callable[..., Run]] = {
    "volpatch": _volpatch(None),
    f"volpatch, {PEAK}": _volpatch(PEAK),
    "dask-image": _dask_image("block"),
    "dask-image, stored chunks": _dask_image("chunks"),
    "scipy, whole, no files": scipy_whole,
}


def task(name: str, title: str, shape: Sequence[int], folder: str, **size: Any) -> Task:
    """One contender, with a target of its own in the folder."""
    source = data.store(Path(folder) / ("x".join(map(str, shape)) + ".zarr"), shape, size["chunks"])
    edge = [min(n, 2 * c) for n, c in zip(shape, size["chunks"], strict=True)]
    small = data.store(Path(folder) / "tiny.zarr", edge, size["chunks"])
    own = Path(tempfile.mkdtemp(prefix="own-", dir=folder))
    make = CONTENDERS[name]

    def clean() -> None:
        for path in own.iterdir():
            shutil.rmtree(path)
        os.sync()  # what is still to be written shall not slow the next one

    def warm() -> None:
        make(title, small, own / "out", size)()
        clean()

    def check(result: Any) -> Figures:
        return _checked(result, title, source, own / "out")

    return Task(make(title, source, own / "out", size), warm, check, clean)


def _checked(result: Any, title: str, source: Path, made: Path) -> Figures:
    """Compare a corner with scipy."""
    import zarr
    from scipy import ndimage

    figures: Figures = {}
    if isinstance(result, np.ndarray):
        return figures
    if isinstance(result, volpatch.RunReport):
        figures["predicted MiB"] = f"{result.predicted_bytes / 2**20:,.0f}"
        figures["redundancy"] = f"{result.redundancy:.2f}"
        image = zarr.open_group(made, mode="r")
        store = image[image.attrs["ome"]["multiscales"][0]["datasets"][0]["path"]]
    else:
        store = zarr.open_array(made, mode="r")
    _, _, name, params = FILTERS[title]
    given = zarr.open_array(source, mode="r")
    part = tuple(slice(0, min(n, 192)) for n in given.shape)
    volume = np.asarray(given[part])
    if title.startswith("gaussian"):
        volume = volume.astype(np.float32)
    whole = np.rint(getattr(ndimage, name)(volume, **params))
    ends = zip(whole.shape, given.shape, strict=True)
    sure = tuple(slice(0, n if n == m else n - 16) for n, m in ends)
    got = np.asarray(store[(0,) * (store.ndim - 3) + part])[sure].astype(np.float64)
    return {"error": float(np.abs(got - whole[sure]).max()), **figures}


def questions(size: Size) -> Iterator[Question]:
    with tempfile.TemporaryDirectory(prefix="volpatch-bench-") as folder:
        for shape in size.shapes:
            for title in (title for title in FILTERS if title.startswith(size.only)):
                yield question(size, shape, title, folder)
            shutil.rmtree(Path(folder) / ("x".join(map(str, shape)) + ".zarr"), ignore_errors=True)


def question(size: Size, shape: tuple[int, int, int], title: str, folder: str) -> Question:
    jobs = [
        Job(
            name,
            "benchmarks.filters:task",
            {
                "name": name,
                "title": title,
                "shape": shape,
                "folder": folder,
                "chunks": size.chunks,
                "block": size.block,
                "workers": size.workers,
            },
            shape[0] * shape[1] * shape[2],
        )
        for name in CONTENDERS
    ]
    text = " x ".join(map(str, shape))
    return Question(
        f"Zarr to Zarr, {title}: {text} uint16, {size.workers} workers",
        jobs,
        unit="voxel",
        runs=size.runs,
        threads=1,
        series=f"Zarr to Zarr, {title}",
        size=shape[0] * shape[1] * shape[2],
    )
