"""A function tried on a box of a volume, to see how far it looks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.compute.rounding import convert
from volpatch.core.axes import CHANNELS
from volpatch.core.blending import check_dtype
from volpatch.core.box import Box
from volpatch.core.errors import SettingError
from volpatch.core.layout import Layout
from volpatch.core.parse import parse_roi
from volpatch.functions.named import FunctionSpec
from volpatch.sampling.reach_check import FoundReach, Side, find_reach, most_shown
from volpatch.storage.open import open_source
from volpatch.storage.volume import Source

EDGE = 128  # voxels of the box along a patched axis, at most


@dataclass(frozen=True)
class Answer:
    """What is to be said of a function's reach.

    Attributes
    ----------
    source : Source
    box : Box
        Over all axes: where the function was tried.
    dims : tuple of str
        The patched axes.
    found : FoundReach
    declared : tuple of int or None
        What a ready-made operation says of itself; None of other functions, and without bound.
    """

    source: Source
    box: Box
    dims: tuple[str, ...]
    found: FoundReach
    declared: tuple[int, ...] | None

    @property
    def words(self) -> str:
        """What to add to the command that runs the function."""
        return f"--reach {_short(self.found.sizes)}"

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        less, dims = self.found.less, self.dims
        spans = zip(self.source.dims, self.box.start, self.box.stop, strict=True)
        return {
            "reach": dict(zip(dims, self.found.sizes, strict=True)),
            "words": self.words,
            "whole_axes": [d for d, all_of in zip(dims, self.found.whole, strict=True) if all_of],
            "one_less": less
            and {"voxels": less.voxels, "compared": less.compared, "largest": less.largest},
            "declared": self.declared and dict(zip(dims, self.declared, strict=True)),
            "box": {dim: [start, stop] for dim, start, stop in spans},
        }

    def __str__(self) -> str:
        said = [("box", f"{self._place()} of {self.source.name}, {self.source.dtype}")]
        said.append(("reach", self._reach()))
        if self.found.less is not None:
            said.append(("one less", f"differs in {self.found.less}"))
        if self.declared is not None:
            said.append(("declared", self._declared()))
        said.append(("say", self.words))
        last = "Found on the voxels of this box, and others may show more: try another --roi."
        return "\n".join([*(f"{name:<9} {text}" for name, text in said), last])

    def _place(self) -> str:
        spans = zip(self.source.dims, self.box.start, self.box.stop, strict=True)
        return " ".join(f"{dim}={start}:{stop}" for dim, start, stop in spans)

    def _reach(self) -> str:
        sizes, whole = self.found.sizes, self.found.whole
        if len(set(sizes)) == 1 and not any(whole):
            return f"{sizes[0]} voxels to each side"
        each = zip(self.dims, sizes, whole, strict=True)
        told = (f"{dim} {size}{' (all of it)' if all_of else ''}" for dim, size, all_of in each)
        return f"{', '.join(told)} voxels to each side"

    def _declared(self) -> str:
        assert self.declared is not None
        pairs = list(zip(self.declared, self.found.sizes, self.found.whole, strict=True))
        if any(said < seen and not all_of for said, seen, all_of in pairs):
            return f"{_short(self.declared)}: too little here, which is a defect; please report it"
        same = all(said == seen or all_of for said, seen, all_of in pairs)
        more = "the same" if same else "more than shows here; it is right on any volume"
        return f"{_short(self.declared)}, {more}; a run needs no --reach"


def _short(sizes: Sequence[int]) -> str:
    """Sizes as the command takes them: one number where all are the same."""
    return ",".join(map(str, sizes[:1] if len(set(sizes)) == 1 else sizes))


def check_reach(
    path: str,
    func: FunctionSpec,
    *,
    roi: Any = None,
    input_dtype: Any = None,
    **opening: Any,
) -> Answer:
    """Try a function on a box in the middle of a volume.

    Parameters
    ----------
    path : str
        The volume.
    func : FunctionSpec
        Of arrays of any size.
    roi : optional
        The part in whose middle the box lies; of other axes its first index.
    input_dtype : optional
        What the function is given.
    **opening
        What `open_source` takes besides.

    Returns
    -------
    Answer
    """
    source = open_source(path, **opening)
    function: Callable[..., Any] = func.load()
    layout = Layout.of(source.dims, source.shape, None)
    names = {CHANNELS: source.channel_names} if source.channel_names else None
    box = middle(parse_roi(roi, source.dims, source.shape, names), layout)
    values = source[box.slices].reshape([box.shape[axis] for axis in layout.patched])
    if input_dtype is not None:
        values = _converted(values, input_dtype)
    whole = [n == source.shape[a] for n, a in zip(values.shape, layout.patched, strict=True)]
    operation, parameters = func.operation, dict(func.parameters)
    declared = None if operation is None else operation.reach_of(len(whole), parameters)
    most = most_shown([Side(n, all_of) for n, all_of in zip(values.shape, whole, strict=True)])
    if declared is not None and max(declared) > most:
        raise SettingError(
            f"{func.target} declares a reach of {_short(declared)}, and a box of {values.shape} "
            f"voxels can show no more than {most}; a run takes what it declares, without reach="
        )
    found = find_reach(function, values, whole, layout.pick(box.start, layout.patched))
    return Answer(source, box, layout.patched_dims, found, declared)


def middle(roi: Box, layout: Layout) -> Box:
    """A box in the middle of the roi along the patched axes, at its first index of others."""
    starts, stops = [], []
    for axis, (start, stop) in enumerate(zip(roi.start, roi.stop, strict=True)):
        edge = min(EDGE, stop - start) if axis in layout.patched else 1
        first = start + (stop - start - edge) // 2 if axis in layout.patched else start
        starts.append(first)
        stops.append(first + edge)
    return Box(tuple(starts), tuple(stops))


def _converted(values: NDArray[Any], dtype: Any) -> NDArray[Any]:
    out = np.empty(values.shape, check_dtype(dtype, "input_dtype"))
    at = convert(values, out)
    if at is not None:
        raise SettingError(
            f"input_dtype={out.dtype} cannot hold {values[at]}; choose one that holds all values "
            f"of the source, {values.dtype}"
        )
    return out


def told(answer: Answer, form: str) -> str:
    """The answer as text or as JSON."""
    return json.dumps(answer.to_json(), indent=2) if form == "json" else str(answer)
