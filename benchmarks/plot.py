"""Speed and memory against the size of the volume, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.harness import Row, Table
from benchmarks.report import NAME, load, tables_of

PANELS = (
    ("Zarr to Zarr, identity, 50 %", "speed, Mvoxel/s"),
    ("Peak memory along z", "peak memory, MiB"),
    ("Peak memory across (y, x)", "peak memory, MiB"),
)


COLORS = {
    "copy": "0.5",
    "volpatch": "C3",
    "dask map_overlap": "C0",
    "cubed map_overlap": "C2",
    "patchly": "C1",
    "MONAI ZarrAvgMerger": "C4",
}


def draw(folder: Path) -> Path | None:
    """Draw what is kept in the folder; None without matplotlib, or with nothing to draw."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    tables = list(tables_of(load(folder)))
    panels = [(s, label) for s, label in PANELS if any(t.series == s for t in tables)]
    if not panels:
        return None
    figure = Figure(figsize=(5.2 * len(panels), 4.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (series, label) in zip(axes, panels, strict=True):
        _panel(ax, series, label, [t for t in tables if t.series == series])
    path = folder / f"{NAME}.png"
    figure.savefig(path, dpi=110)
    return path


def _panel(ax: Any, series: str, label: str, tables: list[Table]) -> None:
    names = dict.fromkeys(row.name for table in tables for row in table.rows)
    for name in (n for n in names if "(on " not in n):
        found = [(table.size, table.row(name)) for table in tables]
        points = sorted((size, _value(row, label)) for size, row in found if row is not None)
        if not points:
            continue
        who, _, variant = name.partition(", ")
        ax.plot(
            *zip(*points, strict=True),
            marker="o",
            ls={"": "-", "fsync": "--"}.get(variant, ":"),
            label=name,
            color=COLORS.get(who),
            lw=2.2 if who == "volpatch" else 1.2,
        )
    ax.set(title=series, xlabel="voxels", ylabel=label, xscale="log")
    ax.tick_params(axis="x", which="minor", labelbottom=False)
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=7)


def _value(row: Row, label: str) -> float:
    return row.work / row.median / 1e6 if label.startswith("speed") else row.peak / 2**20
