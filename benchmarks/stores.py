"""Zarr to Zarr: what blending costs on top of a plain copy, beside other out-of-core ways."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import data, store_contenders
from benchmarks.harness import Job, Question
from benchmarks.store_contenders import Order
from benchmarks.task import CannotError, Task


@dataclass(frozen=True)
class Size:
    shapes: Sequence[tuple[int, int, int]] = ((512,) * 3, (1024,) * 3, (1536,) * 3)
    variants_up_to: int = 512  # edge; larger volumes get the first orders only
    peers_up_to: int = 1024  # edge; those that need minutes per 512³ are timed on 256³
    slow_edge: int = 256
    little_from: int = 1024  # edge from which a limit on memory is felt
    patch: int = 64
    chunks: tuple[int, int, int] = data.CHUNKS
    shards: tuple[int, int, int] = (128, 256, 256)
    block: tuple[int, int, int] = (128, 256, 256)  # of dask and cubed
    workers: int = 2
    memory_limit: str = "2GiB"
    runs: int = 3


FULL = Size()
SMALL = Size(
    shapes=((24, 24, 40),),
    variants_up_to=40,
    peers_up_to=40,
    slow_edge=40,
    patch=16,
    chunks=(24, 24, 24),
    shards=(24, 48, 48),
    block=(24, 24, 24),
    runs=1,
)
ORDERS = {
    "identity, 50 %": {},
    "identity, 25 %": {"overlap": 0.25},
    "identity, 50 %, to float32": {"dtype": "float32"},
    "identity, 50 %, to shards": {"sharded": True},
    "gaussian, 50 %": {"function": "gaussian"},
}
FIRST = ("identity, 50 %", "identity, 25 %")
# minutes for 512³, so smaller, and once
SLOW = ("MONAI ZarrAvgMerger", "patchly")
SLOW_ORDERS = ("identity, 50 %",)


def task(name: str, folder: str, **words: Any) -> Task:
    """One contender, with a target of its own in the folder."""
    order = Order(**{k: tuple(v) if isinstance(v, list) else v for k, v in words.items()})
    make = store_contenders.CONTENDERS[name]
    if order.shards is not None and name not in store_contenders.SHARDS:
        raise CannotError("its blocks are not whole shards")
    place = Path(folder)
    source = data.store(
        place / ("x".join(map(str, order.shape)) + ".zarr"), order.shape, order.chunks
    )
    own = Path(tempfile.mkdtemp(prefix="own-", dir=place))
    edge = tuple(min(n, 2 * c) for n, c in zip(order.shape, order.chunks, strict=True))
    tiny = replace(order, shape=edge)
    small = data.store(place / ("tiny-" + "x".join(map(str, edge)) + ".zarr"), edge, order.chunks)

    def empty() -> None:
        for path in own.iterdir():
            shutil.rmtree(path)

    def clean() -> None:
        empty()
        if order.shape != edge:
            os.sync()  # what is still to be written shall not slow the next one

    def warm() -> None:
        make(tiny, small, own)()
        empty()

    check = store_contenders.unchecked if name.startswith("copy") else store_contenders.checked
    return Task(
        make(order, source, own),
        warm,
        lambda result: check(result, order, source, own),
        clean,
    )


def questions(size: Size) -> Iterator[Question]:
    with tempfile.TemporaryDirectory(prefix="volpatch-bench-") as folder:
        for shape in size.shapes:
            for title, variant in ORDERS.items():
                if shape[0] > size.variants_up_to and title not in FIRST:
                    continue
                if shape[0] > size.peers_up_to and title != FIRST[0]:
                    continue
                yield question(size, shape, title, variant, folder)
            shutil.rmtree(Path(folder) / ("x".join(map(str, shape)) + ".zarr"), ignore_errors=True)


def question(
    size: Size, shape: tuple[int, int, int], title: str, variant: dict[str, Any], folder: str
) -> Question:
    words = {"overlap": 0.5, "dtype": "uint16", "function": "identity", **variant}
    shards = size.shards if words.pop("sharded", False) else None
    order = Order(
        shape=shape,
        patch=size.patch,
        chunks=size.chunks,
        shards=shards,
        block=size.block,
        workers=size.workers,
        memory_limit=size.memory_limit,
        **words,
    )
    jobs = []
    for name in store_contenders.CONTENDERS:
        peer = not name.startswith(("copy", "volpatch"))
        if peer and shape[0] > size.peers_up_to:
            continue
        if name in SLOW and (title not in SLOW_ORDERS or shape != size.shapes[0]):
            continue
        if name.endswith(store_contenders.LITTLE) and shape[0] < size.little_from:
            continue
        own = order
        slow = name in SLOW and shape[0] > size.slow_edge
        if slow:
            own = replace(order, shape=(size.slow_edge,) * 3)
        jobs.append(
            Job(
                f"{name} (on {size.slow_edge}³)" if slow else name,
                "benchmarks.stores:task",
                {"name": name, "folder": folder, **asdict(own)},
                own.shape[0] * own.shape[1] * own.shape[2],
                copy="copy, fsync" if name.endswith("fsync") else "copy by tensorstore",
            )
        )
    of = " x ".join(map(str, shape))
    text = f"Zarr to Zarr, {title}: {of} uint16, patch {size.patch}³, {size.workers} workers"
    edge = shape[0]
    return Question(
        text,
        jobs,
        unit="voxel",
        runs=size.runs if edge <= 512 else 1,
        series=f"Zarr to Zarr, {title}",
        size=edge**3,
    )
