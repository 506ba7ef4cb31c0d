"""Keep tables, with the machine and the versions they were measured with."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.harness import Table, markdown
from volpatch.core import resources as machine

PACKAGES = (
    *(
        "volpatch",
        "dask-image",
        "tensorstore",
        "tileflow",
        "numpy",
        "numba",
        "zarr",
        "numcodecs",
        "dask",
        "scipy",
        "torch",
        "monai",
    ),
    *("torchio", "tiler", "patchly", "patchify", "empatches", "scikit-image", "scikit-learn"),
    "cubed",
)
NAME = "RESULTS"
READING = """\
Every contender runs in a process of its own, on the same seeded arrays (smooth structure plus
noise), in alternation; a first run at a tiny size is not counted. Times are medians. `x volpatch`
and `x copy` say how many times longer a contender takes for the same work. `peak` is the resident
memory of the process with all it started, with interpreter, libraries and, in memory, the input;
`rise` is the peak less what was there before the first run. `cores` is processor time by wall time.
`error` is the largest difference from what the result should be, a voxel away from the faces. A
visit is one voxel of one patch."""


def save(folder: Path, case: str, command: str, tables: Sequence[Table]) -> None:
    """Put the tables of a case among those kept in the folder, and write all as Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = load(folder)
    kept[case] = {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(),
        "versions": versions(),
        "tables": [asdict(table) for table in tables],
    }
    (folder / f"{NAME}.json").write_text(json.dumps(kept, indent=1) + "\n")
    (folder / f"{NAME}.md").write_text(written(kept))


def load(folder: Path) -> dict[str, Any]:
    with suppress(FileNotFoundError):
        kept: dict[str, Any] = json.loads((folder / f"{NAME}.json").read_text())
        return kept
    return {}


def tables_of(kept: dict[str, Any]) -> Iterable[Table]:
    for case in kept.values():
        yield from map(Table.from_json, case["tables"])


def written(kept: dict[str, Any]) -> str:
    """All that is kept, as a page."""
    texts = ["# Benchmarks", READING, f"![Speed and memory against volume size]({NAME}.png)"]
    for case, told in kept.items():
        texts += [f"## {case}", f"`{told['command']}`, {told['date']}, {told['machine']}"]
        texts.append(", ".join(f"{name} {own}" for name, own in told["versions"].items()))
        tables = [Table.from_json(table) for table in told["tables"]]
        texts += [markdown(table) for table in tables]
        texts += [by_size(name, tables) for name in dict.fromkeys(t.series for t in tables) if name]
    return "\n\n".join(texts) + "\n"


def by_size(series: str, tables: Sequence[Table]) -> str:
    """Peak memory of every contender at every size of a series, in one table."""
    own = [table for table in tables if table.series == series]
    names = list(dict.fromkeys(row.name for table in own for row in table.rows))
    head = ["peak MiB", *(f"{table.size / 1e6:,.0f} Mvoxel" for table in own), "largest/smallest"]
    lines = [head, ["---"] + ["---:"] * (len(own) + 1)]
    for name in names:
        rows = [table.row(name) for table in own]
        peaks = [row.peak for row in rows if row is not None]
        ratio = f"{max(peaks) / min(peaks):.2f}" if len(peaks) > 1 and min(peaks) else ""
        cells = ["" if row is None else f"{row.peak / 2**20:,.0f}" for row in rows]
        lines.append([name, *cells, ratio])
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"**{series}: peak by size**\n\n{text}"


def versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def describe_machine() -> str:
    """Processor, cores and memory; no names."""
    model = platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(x for x in lines if x.startswith("model name")).split(":", 1)[1].strip()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    kernel = platform.release().split("-")[0]
    return (
        f"{model}, {machine.processors()} cores, {pages / 2**30:.0f} GiB, "
        f"{platform.system()} {kernel}"
    )
