"""A plan: which regions there are, what each costs, and what it takes in memory.

Everything is arithmetic on per-axis numbers, so the plan of 10^15 voxels is as quick and
as small as that of ten: task i's box is computed when it is asked for, no list exists.

    |<-------------- volume, or roi -------------->|
    |---- region 0 ----|---- region 1 ----|- 2 ----|     edges: multiples of the write unit,
    |unit|unit|unit|...                                  and of the stride where possible
               <- halo ->                                patches over an edge are computed twice

Streaming makes memory independent of a region's length along the first axis, so regions
are long there and as wide across as the memory limit allows: that is where patches that
are computed twice are saved.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from volpatch.core import tables
from volpatch.core.blending import FINALIZE_PLANES, BlendSpec, Mode, rows_at_once
from volpatch.core.box import Box
from volpatch.core.grid import REACH
from volpatch.core.layout import Layout
from volpatch.core.options import JobOptions
from volpatch.core.parse import printable, show_bytes
from volpatch.functions.named import Func
from volpatch.planning.pieces import (
    AxisPieces,
    Figures,
    axis_figures,
    decoded_along,
    largest_pieces,
    patches_needed,
    reach_along,
    ring_planes,
)
from volpatch.planning.source import Volume
from volpatch.storage.regions import table_bytes

# an interpreter with everything imported and compiled, and one that only waits for others
INTERPRETER_BYTES = 234 * 2**20
PARENT_BYTES = 160 * 2**20
# what a thread comes to hold after a trial: its stack, and memory that the allocator keeps in
# pieces between others
KEPT_BYTES = 8 * 2**20
# blended block, and what `finalize` makes of it: argmax over channels copies all once more
FINALIZE_COPIES = 3
# encoded and raw copies of one chunk on its way out
ENCODE_COPIES = 3
# until a trial has measured it, a function is taken to need this many times its batch
FUNCTION_COPIES = 4
# of shares that are being made
SHARE_COPIES = 4
# a write unit on its way into the records, and one that they are known to tell of
RECORD_BYTES = 1000
KNOWN_BYTES = 64


def held_before(resident: int) -> int:
    """Bytes of a process that are data of its own, when `resident` is all it holds.

    >>> held_before(PARENT_BYTES + 10), held_before(2**20)
    (10, 0)
    """
    return max(0, resident - PARENT_BYTES)


@dataclass(frozen=True)
class Plan:
    """How one run is laid out. Made by `volpatch.plan`; see its attributes and `print(plan)`.

    Attributes
    ----------
    region : extent of a region along the patched axes, in voxels.
    read_layer : planes that are read at once along the first patched axis.
    chunks, shards : of the output along the patched axes.
    memory_limit, func_memory : bytes, in all and of one running call (None: not known yet).
    held : bytes that this process holds of its own, such as arrays of a notebook. They are
        no part of what the run needs, and `memory_limit` does not bound them.
    resident, parent : bytes that a worker's interpreter, and that of the process that
        started it, were seen to hold besides; 0 before a trial.
    mask : how the cells of a mask lie on the volume.
    part : (i, n) where every n-th region is computed, from i on.
    incomparable : what the functions carry that another process could not compare, so that
        it could not go on with the run.
    options : what the plan was made of, whole.
    func, finalize : as objects or by name, where they were given.
    """

    source: Volume
    target: str | None
    layout: Layout
    blending: BlendSpec
    roi: Box
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    region: tuple[int, ...]
    read_layer: int
    workers: int
    backend: str
    memory_limit: int
    func_memory: int | None = None
    concurrent_calls: int | None = None
    free_disk: int | None = None
    held: int = 0
    resident: int = 0
    parent: int = 0
    mask: str | None = None
    part: tuple[int, int] | None = None
    incomparable: tuple[str, ...] = ()
    options: JobOptions = field(default_factory=JobOptions, repr=False)
    func: Func | None = field(default=None, repr=False)
    finalize: Func | None = field(default=None, repr=False)

    # -- regions ---------------------------------------------------------------------

    @property
    def unit(self) -> tuple[int, ...]:
        """The write unit along the patched axes."""
        return self.shards or self.chunks

    @property
    def lead_counts(self) -> tuple[int, ...]:
        return tuple(self.roi.stop[i] - self.roi.start[i] for i in self.layout.lead)

    @property
    def box(self) -> Box:
        """The part of the patched axes that is computed."""
        return Box(
            self.layout.pick(self.roi.start, self.layout.patched),
            self.layout.pick(self.roi.stop, self.layout.patched),
        )

    @property
    def axes(self) -> tuple[AxisPieces, ...]:
        box = self.box
        return tuple(map(AxisPieces, box.start, box.stop, self.region))

    @property
    def lattice(self) -> tuple[int, ...]:
        """Number of regions, per leading axis and patched axis."""
        return (*self.lead_counts, *(a.pieces for a in self.axes))

    @property
    def n_regions(self) -> int:
        return math.prod(self.lattice)

    def region_box(self, number: int) -> tuple[tuple[int, ...], Box]:
        """Indices along the leading axes, and voxels along the patched ones, of a region."""
        place: list[int] = []
        for count in reversed(self.lattice):
            number, i = divmod(number, count)
            place.append(i)
        place.reverse()
        n = len(self.layout.lead)
        lead = tuple(
            self.roi.start[axis] + i for axis, i in zip(self.layout.lead, place[:n], strict=True)
        )
        bounds = [a.bounds(i) for a, i in zip(self.axes, place[n:], strict=True)]
        return lead, Box(tuple(a for a, _ in bounds), tuple(b for _, b in bounds))

    # -- work --------------------------------------------------------------------------

    def _patches(self, pieces: Sequence[AxisPieces]) -> int:
        own = self.blending.owns
        return math.prod(self.lead_counts) * math.prod(
            piece.total(axis, functools.partial(patches_needed, axis, own))
            for axis, piece in zip(self.blending.grid.axes, pieces, strict=True)
        )

    @property
    def patches_owned(self) -> int:
        """Patches that the output needs, each counted once."""
        whole = [AxisPieces(a, b, max(1, b - a)) for a, b in zip(*self._ends, strict=True)]
        return self._patches(whole)

    @property
    def _ends(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.box.start, self.box.stop

    @property
    def patches_computed(self) -> int:
        """Patches in all regions together; those over a region's edge count twice."""
        return self._patches(self.axes)

    @property
    def redundancy(self) -> float:
        """Patches computed for each patch that is needed."""
        return self.patches_computed / max(1, self.patches_owned)

    @property
    def calls_per_voxel(self) -> float:
        """Times the function sees a voxel, far from borders: 8.0 at half overlap in 3-D."""
        return self.blending.grid.visits_per_voxel

    @property
    def _channels_in(self) -> int:
        return self.blending.channels_in or 1

    @property
    def bytes_read(self) -> int:
        """Bytes of decoded chunks in all regions together."""
        chunks = self.layout.pick(self.source.chunks, self.layout.patched)
        voxels = math.prod(self.lead_counts) * self._channels_in
        for number, (axis, piece, chunk) in enumerate(
            zip(self.blending.grid.axes, self.axes, chunks, strict=True)
        ):
            again = max(1, chunk // self.read_layer) if number == 0 else 1
            count = functools.partial(decoded_along, axis, self.blending.owns, chunk)
            voxels *= again * piece.total(axis, count, chunk)
        return voxels * self.blending.source_dtype.itemsize

    @property
    def bytes_needed(self) -> int:
        """Bytes of the source under the patches, each voxel counted once."""
        voxels = math.prod(self.lead_counts) * self._channels_in
        for axis, start, stop in zip(self.blending.grid.axes, *self._ends, strict=True):
            first, last = reach_along(axis, self.blending.owns, start, stop)
            voxels *= min(last, axis.size) - first
        return voxels * self.blending.source_dtype.itemsize

    @property
    def read_amplification(self) -> float:
        """Bytes decoded for each byte that is needed."""
        return self.bytes_read / max(1, self.bytes_needed)

    # -- output ------------------------------------------------------------------------

    @property
    def out_axes(self) -> tuple[int | None, ...]:
        """Axes of the output: numbers of the source's, None for the function's channels."""
        return self.layout.result_axes(self.blending.out_channels is not None, self.roi.shape)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Of the output: axes as in the source, channels where c belongs in (t, c, z, y, x)."""
        lengths, channels = self.roi.shape, self.blending.out_channels or 1
        return tuple(channels if axis is None else lengths[axis] for axis in self.out_axes)

    @property
    def bytes_written(self) -> int:
        """Bytes of the output before compression."""
        return math.prod(self.out_shape) * self.blending.out_dtype.itemsize

    # -- memory ------------------------------------------------------------------------

    @property
    def figures(self) -> list[Figures]:
        chunks = self.layout.pick(self.source.chunks, self.layout.patched)
        return [
            axis_figures(axis, self.blending.owns, piece, chunk)
            for axis, piece, chunk in zip(self.blending.grid.axes, self.axes, chunks, strict=True)
        ]

    @property
    def straight(self) -> bool:
        """Whether what a block gives goes to the finished layer, without an accumulator.

        It does where blocks own whole layers of stored chunks.
        """
        axis, first = self.blending.grid.axes[0], self.box.start[0]
        whole = axis.count == 1 or axis.stride % self.chunks[0] == first % self.chunks[0] == 0
        return self.blending.by_blocks and not self.blending.finalizes and whole

    @property
    def layer(self) -> int:
        """Planes of the output that are finished, or being finished, at the same time."""
        chunk = self.chunks[0]
        if not self.straight:
            return chunk
        return -(-self.blending.grid.axes[0].most_owned // chunk) * chunk

    @property
    def memory(self) -> dict[str, int]:
        """Bytes that one worker needs at its peak, term by term."""
        blending, patch = self.blending, self.blending.grid.patch
        face = math.prod(largest_pieces(self.axes[1:]))
        figures = self.figures
        reach = [f.reach for f in figures]
        planes = ring_planes(blending.grid.axes[0], blending.owns, self.axes[0], self.read_layer)
        size = blending.batch_size or 1
        single = self._channels_in * math.prod(patch) * blending.input_dtype.itemsize
        acc_planes = min(patch[0], self.region[0])
        channels, final = blending.channels_out or 1, blending.out_channels or 1
        source = blending.source_dtype.itemsize
        ring = blending.input_dtype.itemsize if blending.halves else source
        # patches before they are narrowed, and what is made to look at one of them
        before = self._channels_in * math.prod(patch) * source
        looked_at = (blending.together + 2) * before if blending.narrows else 0
        result = channels * size * math.prod(patch) * blending.known_result.itemsize
        given = size * single
        layer = min(self.layer, self.region[0])
        out = blending.out_dtype.itemsize
        hangs = any(axis.padded > axis.size for axis in blending.grid.axes)
        copies = (2 * ring if hangs else 0) + (source if blending.halves else 0)
        at_once = min(planes, max(self.read_layer, patch[0] if hangs else 0))
        terms = {
            "input ring": self._channels_in * planes * math.prod(reach[1:]) * ring,
            "stored chunks being read": self.source.reading_bytes,
            "padding and casting": self._channels_in * at_once * math.prod(reach[1:]) * copies,
            "batch and its result": blending.together * single + looked_at + 2 * result,
            "function": FUNCTION_COPIES * given if self.func_memory is None else self.func_memory,
            "accumulator": 0
            if self.straight
            else channels * acc_planes * face * blending.accumulator.itemsize,
            "finished layer": final * layer * face * out,
            "chunks being encoded": ENCODE_COPIES * math.prod(self.chunks) * out,
            "shares": self._shares(figures),
            "records": self._records(),
        }
        if blending.mode is not Mode.ADD and blending.mode is not Mode.SELECT:
            beside = 8 if blending.mode is Mode.NEAREST else blending.accumulator.itemsize + 1
            terms["marks of missing voxels"] = channels * acc_planes * face * beside
        if blending.may_skip:
            terms["mask"] = 2 * patch[0] * math.prod(reach[1:])
        if blending.finalizes:
            blended = channels * blending.blended_dtype.itemsize + final * out
            planes = min(layer, acc_planes, FINALIZE_PLANES)
            terms["finalize"] = FINALIZE_COPIES * planes * face * blended
        return terms

    def _shares(self, figures: list[Figures]) -> int:
        """Bytes of what is looked up of the patches of a region, twice while it is made."""
        patch = self.blending.grid.patch
        counts = [f.patches for f in figures]
        some = [min(n, rows_at_once(p)) for n, p in zip(counts, patch, strict=True)]
        kept = [some[0], *counts[1:]]
        tables = sum(n * (p + 3) * 8 for n, p in zip(kept, patch, strict=True))
        made = max(n * p * 8 for n, p in zip(some, patch, strict=True))
        return 2 * tables + SHARE_COPIES * made

    def _records(self) -> int:
        """Bytes to tell, and remember, what is written: of a layer, a region, and all regions."""
        face, *rest = (
            -(-n // u) for n, u in zip(largest_pieces(self.axes), self.unit, strict=True)
        )
        layer = math.prod(rest)
        # once for all workers
        all_regions = table_bytes(self.n_regions, mixed=self.blending.may_skip) // self.running
        return RECORD_BYTES * layer + KNOWN_BYTES * face * layer + all_regions

    @property
    def peak_per_worker(self) -> int:
        """Bytes that one worker needs at its peak, without its interpreter."""
        return sum(self.memory.values())

    @property
    def running(self) -> int:
        """Workers that have something to do."""
        return max(1, min(self.workers, self.n_regions))

    @property
    def interpreters(self) -> int:
        """Bytes of all interpreters, with what they have imported and compiled."""
        threads = self.running if self.backend == "threads" else 1
        settled = self.resident + threads * KEPT_BYTES if self.resident else 0
        worker = max(INTERPRETER_BYTES, settled)
        if self.backend == "threads":
            return worker
        return max(PARENT_BYTES, self.parent) + self.running * worker

    @property
    def peak(self) -> int:
        """Bytes that the whole run needs at its peak, interpreters included, `held` not."""
        return self.interpreters + self.running * self.peak_per_worker

    # -- text --------------------------------------------------------------------------

    def __repr__(self) -> str:
        return self.explain(short=True)

    def _repr_html_(self) -> str:
        return tables.html("Plan", self._rows())

    def explain(self, *, short: bool = False) -> str:
        """The plan for people; `short` leaves out the memory terms."""
        return tables.text(self._rows(short=short))

    def _rows(self, *, short: bool = False) -> Iterator[tuple[str, str]]:
        grid, blending = self.blending.grid, self.blending
        known = "" if blending.complete else " (dtype assumed)"
        disk = "" if self.free_disk is None else f", {show_bytes(self.free_disk)} free on disk"
        halo = tuple(p - s for p, s in zip(grid.patch, grid.stride, strict=True))
        source = (
            f"{self.source.name}: {_sizes(self.source.dims, self.source.shape)} "
            f"{self.source.dtype}, chunks {self.source.chunks}"
        )
        yield "source", "\n".join([source, *map(printable, self.source.remarks)])
        yield (
            "output",
            f"{self.target or 'not named'}\n"
            f"{times(self.out_shape)} {blending.out_dtype}{known}, "
            f"{show_bytes(self.bytes_written)}{disk}\n"
            f"chunks {self.chunks}, shards {self.shards or 'none'}",
        )
        if self.mask is not None:
            yield "mask", self.mask
        cut = (
            f"{grid.patch}, stride {grid.stride}, window {_windows(blending)}, "
            f"edge {'/'.join(dict.fromkeys(grid.edge))}"
        )
        if REACH in grid.edge:
            margin = tuple((p - s) // 2 for p, s in zip(grid.patch, grid.stride, strict=True))
            cut = f"{grid.stride} with a margin of {margin}, each voxel from the block it lies in"
        yield (
            "blocks" if REACH in grid.edge else "patches",
            f"{cut}\n"
            f"{self.patches_owned:,} needed, {self.patches_computed:,} computed: "
            f"redundancy {self.redundancy:.2f}; {self.calls_per_voxel:.1f} calls per voxel",
        )
        yield (
            "regions",
            f"{self.n_regions:,} of {times(self.region)}, halo {times(halo)}; "
            f"{self.running} of {self.workers} {self.backend}",
        )
        if self.part is not None:
            yield "part", part_text(self.part, self.n_regions)
        yield (
            "traffic",
            f"reads {show_bytes(self.bytes_read)} (x{self.read_amplification:.2f}), "
            f"writes {show_bytes(self.bytes_written)} before compression",
        )
        yield "memory", "\n".join(self._memory_lines(short=short))
        if self.incomparable:
            yield (
                "resume",
                f"not after a kill: {some(self.incomparable)} cannot be compared;\n"
                "func_version=TEXT, which replaces the comparison, would help",
            )

    def _memory_lines(self, *, short: bool) -> Iterator[str]:
        yield (
            f"{show_bytes(self.peak)} at the peak, under the limit of "
            f"{show_bytes(self.memory_limit)}:"
        )
        workers = f"{self.running} x {show_bytes(self.peak_per_worker)}"
        yield f"{workers} + {show_bytes(self.interpreters)} interpreters"
        if self.held:
            yield f"and {show_bytes(self.held)} that this process held before"
        if not short:
            for term, number in sorted(self.memory.items(), key=lambda item: -item[1]):
                note = " (assumed)" if term == "function" and self.func_memory is None else ""
                yield f"{show_bytes(number):>10}  {term}{note}"

    def to_json(self) -> dict[str, Any]:
        """The figures of the plan, for programs."""
        return {
            "regions": self.n_regions,
            "region": list(self.region),
            "workers": self.running,
            "backend": self.backend,
            "patches_needed": self.patches_owned,
            "patches_computed": self.patches_computed,
            "redundancy": self.redundancy,
            "calls_per_voxel": self.calls_per_voxel,
            "bytes_read": self.bytes_read,
            "read_amplification": self.read_amplification,
            "bytes_written": self.bytes_written,
            "free_disk_bytes": self.free_disk,
            "output_shape": list(self.out_shape),
            "mask": self.mask,
            "output_dtype": str(self.blending.out_dtype) if self.blending.complete else None,
            "peak_bytes": self.peak,
            "peak_bytes_per_worker": self.peak_per_worker,
            "memory_bytes_per_worker": self.memory,
            "interpreter_bytes": self.interpreters,
            "held_bytes": self.held,
            "incomparable": list(self.incomparable),
            "memory_limit_bytes": self.memory_limit,
        }


def _sizes(dims: Sequence[str], shape: Sequence[int]) -> str:
    return " ".join(f"{d}={n}" for d, n in zip(dims, shape, strict=True))


def some(places: Sequence[str], most: int = 3) -> str:
    """A few of them in words.

    >>> some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = f" and {len(places) - most} more" if len(places) > most else ""
    return f"{', '.join(places[:most])}{more}"


def part_text(part: tuple[int, int], n_regions: int) -> str:
    """What falls to a part, and what is to be done where that is nothing.

    >>> part_text((1, 2), 5)
    '1/2: 2 of 5 regions'
    """
    i, n = part
    own = len(range(i, n_regions, n))
    text = f"{i}/{n}: {own or 'none'} of {n_regions:,} regions"
    if n > n_regions:
        text += (
            f"\nthere are more parts than regions: {n - n_regions:,} have nothing to do; fewer "
            f"parts are as fast, and a smaller region=(...) makes more regions"
        )
    return text


def times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _windows(blending: BlendSpec) -> str:
    names = (
        w if isinstance(w, str) else getattr(w, "__name__", "custom") for w in blending.windows
    )
    return "/".join(dict.fromkeys(names))
