"""What `volpatch info` tells of a volume on disk."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from volpatch.core.axes import SPATIAL
from volpatch.core.errors import SourceError
from volpatch.core.parse import printable, show_bytes
from volpatch.storage.open import open_source
from volpatch.storage.volume import Source

_KINDS = {
    "PlainReader": "TIFF stack",
    "DecodedReader": "TIFF stack, compressed or tiled",
    "FolderReader": "folder of TIFF slices",
}


def facts_of(source: Source) -> dict[str, Any]:
    """What `info` tells, as JSON values; per-axis facts by name of the axis."""

    def by_axis(values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(source.dims, values, strict=True))

    kind = _KINDS.get(type(source.reader).__name__)
    if kind is None:  # an image's array lies inside of it
        inside = getattr(source.reader, "path", None) != source.path
        kind = "OME-Zarr image" if inside else "Zarr array"
    return {
        "path": source.path,
        "kind": kind,
        "shape": by_axis(source.shape),
        "dtype": str(source.dtype),
        "bytes": source.nbytes,
        "chunks": by_axis(source.chunks),
        "shards": None if source.shards is None else by_axis(source.shards),
        "spacing": by_axis(source.spacing),
        "units": by_axis(source.units),
        "origin": by_axis(source.origin),
        "channels": None if source.channel_names is None else list(source.channel_names),
        "level": source.level,
        "levels": _levels(source),
        "series": source.series,
        "remarks": list(source.remarks),
    }


def _levels(source: Source) -> list[list[int]]:
    """Shape of each resolution, finest first."""
    shapes: list[list[int]] = []
    with suppress(SourceError):  # there is no such level
        while True:
            shapes.append(
                list(open_source(source.path, level=len(shapes), series=source.series).shape)
            )
    return shapes


def info_text(facts: dict[str, Any]) -> str:
    def times(sizes: Sequence[int]) -> str:
        return " x ".join(map(str, sizes))

    spatial = [d for d in facts["shape"] if d in SPATIAL]

    def places(what: str) -> str:
        return ", ".join(
            f"{d} {facts[what][d]:.6g} {facts['units'][d] or '(no unit)'}" for d in spatial
        )

    shape = " ".join(f"{d}={n}" for d, n in facts["shape"].items())
    shards = facts["shards"]
    lines = [
        f"path      {facts['path']}",
        f"kind      {facts['kind']}",
        f"shape     {shape} {facts['dtype']}, {show_bytes(facts['bytes'])}",
        f"chunks    {times(facts['chunks'].values())}, shards "
        f"{times(shards.values()) if shards else 'none'}",
        f"voxel     {places('spacing')}",
        f"origin    {places('origin')}",
    ]
    if facts["channels"]:
        lines.append(f"channels  {', '.join(facts['channels'])}")
    if len(facts["levels"]) > 1:
        shapes = "; ".join(f"{n}: {times(s)}" for n, s in enumerate(facts["levels"]))
        lines.append(f"levels    {shapes}")
    if facts["series"] is not None:
        lines.append(f"series    {facts['series']}")
    if facts["units"].get("t"):
        lines.append(f"time      steps of {facts['spacing']['t']:.6g} {facts['units']['t']}")
    lines.extend(f"remark    {remark}" for remark in facts["remarks"])
    return "\n".join(map(printable, lines))
