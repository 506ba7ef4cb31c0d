"""What a run did, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from volpatch.compute.blend import PHASES, Stats
from volpatch.core import tables
from volpatch.core.parse import printable, show_bytes
from volpatch.planning.plan import part_text
from volpatch.report.progress import show_seconds


@dataclass
class RunReport:
    """What a finished run did. `print(report)` for people, `to_json()` for programs.

    Attributes
    ----------
    seconds : wall time; `phases` sums the time of all workers, per phase.
    clipped : values that did not fit the output's dtype, and were clipped to it.
    peak_bytes, predicted_bytes : memory of all processes of the run, at most.
    held_bytes : that this process held of its own before; not part of these.
    voxels, raw_bytes, encoded_bytes : of the output, as far as this run computed it: all
        channels counted, before compression, and of the objects that were written.
    complete : whether the output is under its name now; a part may leave work to others.
    regions : of the whole output.
    regions_done : regions that this run computed.
    regions_before : regions that were done before this run, by one that was ended or by others.
    part : (i, n) where only every n-th region was asked for.
    already : whether the output was complete before, so that nothing was computed.
    remarks : what was passed over, is not stored, or could not be looked at.
    """

    target: str
    shape: tuple[int, ...]
    dtype: str
    seconds: float
    regions: int
    workers: int
    backend: str
    redundancy: float
    predicted_bytes: int
    peak_bytes: int
    held_bytes: int
    stats: Stats = field(default_factory=Stats)
    encoded_bytes: int = 0
    raw_bytes: int = 0
    source_itemsize: int = 1
    complete: bool = True
    voxels: int = 0
    regions_done: int = 0
    regions_before: int = 0
    part: tuple[int, int] | None = None
    already: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def voxels_per_second(self) -> float:
        return self.voxels / max(self.seconds, 1e-9)

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "seconds": self.seconds,
            "patches": self.stats.patches,
            "calls": self.stats.calls,
            "regions": self.regions,
            "regions_done": self.regions_done,
            "regions_before": self.regions_before,
            "complete": self.complete,
            "already": self.already,
            "remarks": list(self.remarks),
            "part": None if self.part is None else list(self.part),
            "workers": self.workers,
            "backend": self.backend,
            "redundancy": self.redundancy,
            "voxels": self.voxels,
            "voxels_per_second": self.voxels_per_second,
            "bytes_read": self.stats.voxels_read * self.source_itemsize,
            "bytes_written": self.raw_bytes,
            "encoded_bytes": self.encoded_bytes,
            "clipped": self.stats.clipped,
            "peak_bytes": self.peak_bytes,
            "held_bytes": self.held_bytes,
            "predicted_bytes": self.predicted_bytes,
            "phase_seconds": dict(self.stats.seconds),
        }

    @property
    def _completion(self) -> str:
        if self.complete:
            return self.target
        asked = "what was asked for" if self.part is None else "part {}/{}".format(*self.part)
        return f"not yet: {asked} is done, other regions are missing"

    def _repr_html_(self) -> str:
        return tables.html("Run", self._rows())

    def __repr__(self) -> str:
        return tables.text(self._rows())

    def _rows(self) -> Iterator[tuple[str, str]]:
        output = f"{self.target}: {' x '.join(map(str, self.shape))} {self.dtype}"
        if self.already:
            yield "output", f"complete already: {output}"
            yield (
                "looked at",
                "job and sizes of all objects; `volpatch verify` compares their content",
            )
        else:
            size = f"{show_bytes(self.raw_bytes)} in {show_bytes(self.encoded_bytes)}"
            yield "wrote" if self.complete else "building", f"{output}, {size}"
            yield "took", self._took
            if self.stats.patches:
                yield "spent", self._spent
            held = f"; {show_bytes(self.held_bytes)} held before" if self.held_bytes else ""
            yield (
                "memory",
                f"{show_bytes(self.peak_bytes)} at the peak, "
                f"{show_bytes(self.predicted_bytes)} predicted{held}",
            )
            yield "clipped", f"{self.stats.clipped:,} values"
        for remark in self.remarks:
            yield "remark", printable(remark)
        if self.part is not None:
            yield "part", part_text(self.part, self.regions)
        yield "complete", self._completion

    @property
    def _took(self) -> str:
        before = f" ({self.regions_before:,} done before)" if self.regions_before else ""
        regions = f"{self.regions_done:,} of {self.regions:,} regions{before}"
        if not self.regions_done:
            return f"{show_seconds(self.seconds)}; {regions}: nothing was left to do"
        return (
            f"{show_seconds(self.seconds)}, {self.voxels_per_second / 1e6:.1f} Mvoxel/s; "
            f"{self.stats.patches:,} patches in {self.stats.calls:,} calls, {regions}, "
            f"{self.workers} {self.backend}"
        )

    @property
    def _spent(self) -> str:
        busy = sum(self.stats.seconds.values()) or 1.0
        spent = [(name, self.stats.seconds[name]) for name in PHASES]
        return ", ".join(f"{name} {show_seconds(s)} ({s / busy:.0%})" for name, s in spent)
