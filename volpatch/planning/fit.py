"""Choose the regions of a plan: as long and as wide as the memory limit allows.

Even cuts of every axis are tried, in whole write units (and strides where they can be
had). The cheapest that fits is taken: fewest visits of voxels by patches, and fewest
decoded chunks, on the worker that has most to do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from volpatch.core.errors import MemoryLimitError, SettingError
from volpatch.core.parse import show_bytes
from volpatch.planning.plan import Plan, times

# what decoding a voxel costs, in visits of a voxel by a patch
DECODE_COST = 2
MAX_FACES = 1_000
MANY_LAYERS = 2**12


def fit(draft: Plan, *, region: Sequence[int] | None, fewer_workers: bool) -> Plan:
    """The draft with the regions, read layer and number of workers that suit it best.

    Parameters
    ----------
    draft : a plan whose `region`, `read_layer` are still to be chosen.
    region : fixed by the user; only checked then.
    fewer_workers : whether workers may be dropped where all of them do not fit.

    Raises
    ------
    MemoryLimitError
        If no region fits under the memory limit; names the largest term and a way out.
    SettingError
        If `region` is no multiple of the write unit.
    """
    if region is not None:
        _check_region(draft, region)
    counts = range(draft.workers, 0, -1) if fewer_workers else [draft.workers]
    for workers in counts:
        best = _best(replace(draft, workers=workers), region)
        if best is not None:
            return best
    raise _nothing_fits(draft, region)


def check_reading(draft: Plan, region: Sequence[int] | None) -> None:
    """Refuse what no region can make fit, before anything is read: chunks too big to read.

    Raises
    ------
    MemoryLimitError
        As `fit` would.
    """
    alone = replace(draft, workers=1)
    if alone.interpreters + alone.memory["stored chunks being read"] > draft.memory_limit:
        raise _nothing_fits(draft, region)


def _check_region(draft: Plan, region: Sequence[int]) -> None:
    for name, edge, unit, size in zip(
        draft.layout.patched_dims, region, draft.unit, draft.box.shape, strict=True
    ):
        if edge < 1 or (edge % unit and edge < size):
            raise SettingError(
                f"region {edge} on {name} is no multiple of the write unit {unit}: two regions "
                f"would write one object; choose {max(unit, edge // unit * unit)}, or other chunks"
            )


def _read_layers(draft: Plan) -> list[int]:
    """Layers to read in: whole chunks first, then parts of them where chunks are thick."""
    chunk = draft.layout.pick(draft.source.chunks, draft.layout.patched)[0]
    stride = draft.blending.grid.stride[0]
    if chunk < stride:  # pages of a stack: several at once
        return [chunk * max(1, min(stride, 32) // chunk)]
    layers = [chunk]
    while layers[-1] // 2 >= max(stride, 1):
        layers.append(layers[-1] // 2)
    return layers


def _steps(draft: Plan) -> list[int]:
    """What region edges are multiples of: the write unit, and the stride where it can be had."""
    steps = []
    for unit, stride, size in zip(
        draft.unit, draft.blending.grid.stride, draft.box.shape, strict=True
    ):
        both = math.lcm(unit, stride)
        steps.append(both if both <= max(unit, size // 2) else unit)
    return steps


def _edges(size: int, step: int) -> list[int]:
    """Region edges worth trying on an axis: even cuts into 1, 2, 3, … pieces."""
    most = -(-size // step)
    edges, pieces = [], 1
    while pieces <= most:
        edge = -(-most // pieces)
        edges.append(edge * step)
        # the next number of pieces that makes them smaller, and not by next to nothing
        pieces = -(-most // (edge - max(1, edge // MAX_FACES))) if edge > 1 else most + 1
    return edges


def _candidates(draft: Plan, region: Sequence[int] | None) -> Iterator[tuple[int, ...]]:
    if region is not None:
        yield tuple(region)
        return
    # strides that share little with the write units make steps that may fit no memory
    for steps in dict.fromkeys([tuple(_steps(draft)), draft.unit]):
        edges = [_edges(n, s) for n, s in zip(draft.box.shape, steps, strict=True)]
        # more pieces along the streamed axis than keep all workers busy only cost patches,
        # unless one has so many write units that to remember them costs memory
        least = min(-(-draft.box.shape[0] // (4 * draft.workers)), MANY_LAYERS * steps[0])
        edges[0] = [e for e in edges[0] if e >= least]
        while math.prod(len(e) for e in edges) > MAX_FACES:
            longest = max(range(len(edges)), key=lambda i: len(edges[i]))
            edges[longest] = [*edges[longest][:-1:2], edges[longest][-1]]
        yield from itertools.product(*edges)


def _cost(plan: Plan) -> float:
    """Time of a run, in visits of a voxel: waves of regions times what the largest takes."""
    chunk = plan.layout.pick(plan.source.chunks, plan.layout.patched)[0]
    visits = decoded = 1
    for figures, patch in zip(plan.figures, plan.blending.grid.patch, strict=True):
        visits *= patch * figures.patches
        decoded *= figures.decoded
    decoded *= max(1, chunk // plan.read_layer)
    waves = -(-plan.n_regions // plan.workers)
    return float(waves * (visits + DECODE_COST * decoded))


def _best(draft: Plan, region: Sequence[int] | None) -> Plan | None:
    """The cheapest plan that fits; longer and fewer regions where it makes no difference."""
    best: Plan | None = None
    lowest = math.inf
    for layer, edges in itertools.product(_read_layers(draft), _candidates(draft, region)):
        plan = replace(draft, region=edges, read_layer=layer)
        if plan.peak > plan.memory_limit:
            continue
        cost = _cost(plan)
        if cost < lowest * 0.999:
            best, lowest = plan, cost
    return best


def _smallest(draft: Plan, region: Sequence[int] | None) -> Plan:
    """The draft with the regions that need least, read in the thinnest layers.

    They are the smallest, unless there are so many that to keep account of them needs more.
    """
    layer = _read_layers(draft)[-1]
    plans = [replace(draft, region=e, read_layer=layer) for e in _candidates(draft, region)]
    return min(reversed(plans), key=lambda plan: plan.peak)


def _nothing_fits(draft: Plan, region: Sequence[int] | None) -> MemoryLimitError:
    """What dominates the smallest plan there is, and settings that would fit."""
    smallest = _smallest(draft, region)
    terms = {"interpreters": smallest.interpreters}
    terms.update({k: smallest.running * v for k, v in smallest.memory.items()})
    name, size = max(terms.items(), key=lambda item: item[1])
    ways = []
    alone = _smallest(replace(draft, workers=1), region)
    if smallest.running > 1 and alone.peak <= draft.memory_limit:
        ways.append("workers=1")
    if name == "batch and its result" and (draft.blending.batch_size or 1) > 1:
        ways.append("a smaller batch_size")
    elif name in ("accumulator", "input ring", "finished layer", "chunks being encoded"):
        ways.append("smaller chunks" if region is None else "a smaller region")
        ways.append("a smaller patch")
    ways.append(f"memory_limit='{-(-smallest.peak // 2**20)}MiB'")
    apart = ""
    if draft.held:
        apart = f" (the {show_bytes(draft.held)} that this process held before are not counted)"
    what = "the region" if region else "even the smallest region,"
    return MemoryLimitError(
        f"{what} {times(smallest.region)}, needs {show_bytes(smallest.peak)} with "
        f"{smallest.running} workers, over the limit of {show_bytes(draft.memory_limit)}{apart}; "
        f"the largest part is {name} with {show_bytes(size)}. Choose {' or '.join(ways)}"
    )
