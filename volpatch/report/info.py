"""What `volpatch info` tells of a volume on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from volpatch.core.axes import SPATIAL
from volpatch.core.errors import SourceError, TargetError
from volpatch.core.parse import printable, show_bytes
from volpatch.planning.provenance import command
from volpatch.storage.open import open_source
from volpatch.storage.plan_file import PlanFile
from volpatch.storage.stores.local import SUFFIX
from volpatch.storage.volume import Source


def facts_of(source: Source) -> dict[str, Any]:
    """What `info` tells, as JSON values; per-axis facts by name of the axis."""

    def by_axis(values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(source.dims, values, strict=True))

    return {
        "path": source.path,
        "kind": source.kind,
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
        "made": _made(source),
    }


def _made(source: Source) -> dict[str, Any] | None:
    """How an output of volpatch was made, as its records tell; None of any other volume."""
    with suppress(TargetError):  # damaged: `verify` tells
        file = PlanFile.load(Path(source.path) / SUFFIX)
        if file is not None:
            told = {"writer": file.writer or "run", **file.identity["output"]["attributes"]}
            return {**told, **{f"made_{k}": v for k, v in file.layout.get("made", {}).items()}}
    return None


def command_of(path: str | os.PathLike[str]) -> str:
    """The line that makes an output of volpatch again, byte for byte.

    Raises
    ------
    TargetError, SettingError
        It is no output with records; or no command can say how it was made.
    """
    place = os.path.abspath(path)
    file = PlanFile.load(Path(place) / SUFFIX)
    if file is None:
        raise TargetError(
            f"{place!r} has no records of how it was made; name the finished output of "
            f"`volpatch run`"
        )
    return command(file, place)


def _levels(source: Source) -> list[list[int] | None]:
    """Shape of each resolution, finest first; None of one that cannot be opened."""
    return [_shape(source, level) for level in range(source.levels)]


def _shape(source: Source, level: int) -> list[int] | None:
    with suppress(SourceError):  # it is missing, which the level that is read need not be
        return list(open_source(source.path, level=level, series=source.series).shape)
    return None


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
        shapes = "; ".join(
            f"{n}: {times(s) if s else 'missing'}" for n, s in enumerate(facts["levels"])
        )
        lines.append(f"levels    {shapes}")
    if facts["series"] is not None:
        lines.append(f"series    {facts['series']}")
    if facts["units"].get("t"):
        lines.append(f"time      steps of {facts['spacing']['t']:.6g} {facts['units']['t']}")
    lines.extend(_made_lines(facts["made"]))
    lines.extend(f"remark    {remark}" for remark in facts["remarks"])
    return "\n".join(map(printable, lines))


def _made_lines(made: Mapping[str, Any] | None) -> Iterator[str]:
    """How an output was made, for people."""
    if made is None:
        return
    if made.get("function") is None:
        yield f"made      by {made['writer']}"
    else:
        words = ", ".join(f"{k}={json.dumps(v)}" for k, v in made["parameters"].items())
        after = f", then {made['finalize']}" if made["finalize"] else ""
        yield f"made      {made['function']}({words}){after}, of {made['source']}"
        sizes = ", ".join(f"{name} {tuple(made[name])}" for name in ("patch", "stride", "overlap"))
        window, edge = ("/".join(dict.fromkeys(made[name])) for name in ("window", "edge"))
        yield f"          {sizes}, window {window}, edge {edge}"
    if "made_by" in made:
        yield f"          {made['made_time']} from {made['made_source']}"
        yield f"          {', '.join(f'{k} {v}' for k, v in made['made_versions'].items())}"
        yield f"          {made['made_by']}"
