"""The ready-made functions, as a list."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from volpatch.functions.operation import Operation
from volpatch.functions.registry import OPERATIONS


def facts() -> list[dict[str, Any]]:
    """What is known of each, as JSON values."""
    return [
        {
            "name": one.name,
            "summary": one.summary,
            "parameters": {p.name: {"default": p.default, "help": p.help} for p in one.parameters},
            "reach": _reach(one),
            "stored": one.kept,
            "speed": None if math.isnan(one.speed) else one.speed,
        }
        for one in OPERATIONS.values()
    ]


def text() -> str:
    """A list for people: a block for each."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    for one in OPERATIONS.values():
        reach = _reach(one)
        looks = "looks at the whole patch" if reach is None else f"reach {reach}"
        speed = "" if math.isnan(one.speed) else f", {one.speed:g} Mvoxel/s"
        dtype = "the source's dtype" if one.kept == "source" else one.kept
        yield f"{one.name:<11} {one.summary} ({looks}, {dtype}{speed})"
        for parameter in one.parameters:
            yield f"{'':<11}   {parameter.name:<11} {parameter.help}"
    yield ""
    yield "Reach in voxels with the defaults, and speed of one core on uint16, about. Those with a"
    yield "reach give what they give on the whole volume: volpatch run IN OUT --apply median"
    yield "--param size=5. Of your own function say it: --apply package.module:function --reach 8."


def _reach(operation: Operation) -> int | None:
    found = operation.reach_of(1, {})
    return None if found is None else found[0]
