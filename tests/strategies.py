"""What Hypothesis draws: grids, volumes and chunks."""

from __future__ import annotations

from hypothesis import strategies as st

from volpatch import PatchGrid
from volpatch.core.grid import AxisGrid

WEIGHTED = ["constant", "hann", "triangle", "gaussian"]


@st.composite
def problems(draw, max_ndim=3):
    """A grid that covers everything, and an array that it lies over."""
    ndim = draw(st.integers(1, max_ndim))
    shape = [draw(st.integers(1, 14)) for _ in range(ndim)]
    edge = draw(st.sampled_from(["shift", "pad"]))
    patch = [draw(st.integers(1, n if edge == "shift" else n + 3)) for n in shape]
    stride = [draw(st.integers(1, p)) for p in patch]
    return PatchGrid(tuple(shape), tuple(patch), tuple(stride), edge=edge)


@st.composite
def chunked(draw, shape):
    """Any chunks: thin, thick, odd."""
    chunks = []
    for n in shape:
        sizes = []
        while sum(sizes) < n:
            sizes.append(min(draw(st.integers(1, n)), n - sum(sizes)))
        chunks.append(tuple(sizes))
    return tuple(chunks)


@st.composite
def axis_grids(draw, gaps=True):
    """Any axis that can be: all edges, offsets, and strides with and without gaps."""
    size = draw(st.integers(1, 40))
    edge = draw(st.sampled_from(["shift", "pad", "drop"]))
    offset = draw(st.integers(0, size - 1))
    patch = draw(st.integers(1, size - offset if edge == "shift" else size + 5))
    stride = draw(st.integers(1, patch + 4 if gaps else patch))
    return AxisGrid(size, patch, stride, edge, offset)
