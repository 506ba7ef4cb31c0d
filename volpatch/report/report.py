"""What a run did, for people and for programs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from volpatch.compute.blend import PHASES, Stats
from volpatch.core.html import table_of_text
from volpatch.core.parse import show_bytes
from volpatch.planning.plan import NAME_WIDTH
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
    encoded_bytes : size of the objects that were written.
    complete : whether the output is under its name now; a part may leave work to others.
    regions_before : regions that were done before this run, by one that was ended or by others.
    part : (i, n) where only every n-th region was asked for.
    already : whether the output was complete before, so that nothing was computed.
    remarks : what could not be looked at.
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
    regions_before: int = 0
    part: tuple[int, int] | None = None
    already: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def voxels(self) -> int:
        """Voxels of the output, channels not counted apart."""
        total = 1
        for n in self.shape:
            total *= n
        return total

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
            "regions_before": self.regions_before,
            "complete": self.complete,
            "already": self.already,
            "remarks": list(self.remarks),
            "part": None if self.part is None else list(self.part),
            "workers": self.workers,
            "backend": self.backend,
            "redundancy": self.redundancy,
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
        return table_of_text("Run", repr(self), NAME_WIDTH)

    def __repr__(self) -> str:
        busy = sum(self.stats.seconds.values()) or 1.0
        spent = [(name, self.stats.seconds[name]) for name in PHASES]
        phases = ", ".join(f"{name} {show_seconds(s)} ({s / busy:.0%})" for name, s in spent)
        shape = " x ".join(map(str, self.shape))
        if self.already:
            lines = [
                f"output    complete already: {self.target}: {shape} {self.dtype}",
                "looked at job and sizes of all objects; `volpatch verify` compares their content",
            ]
            lines += [f"remark    {remark}" for remark in self.remarks]
            return "\n".join([*lines, f"complete  {self._completion}"])
        held = f"; {show_bytes(self.held_bytes)} held before" if self.held_bytes else ""
        before = f" ({self.regions_before:,} done before)" if self.regions_before else ""
        return "\n".join(
            [
                f"{'wrote' if self.complete else 'building'}".ljust(NAME_WIDTH)
                + f"{self.target}: {shape} {self.dtype}, {show_bytes(self.raw_bytes)} in "
                f"{show_bytes(self.encoded_bytes)}",
                f"took      {show_seconds(self.seconds)}, "
                f"{self.voxels_per_second / 1e6:.1f} Mvoxel/s; {self.stats.patches:,} patches in "
                f"{self.stats.calls:,} calls, {self.regions:,} regions{before}, "
                f"{self.workers} {self.backend}",
                f"spent     {phases}",
                f"memory    {show_bytes(self.peak_bytes)} at the peak, "
                f"{show_bytes(self.predicted_bytes)} predicted{held}",
                f"clipped   {self.stats.clipped:,} values",
                f"complete  {self._completion}",
            ]
        )
