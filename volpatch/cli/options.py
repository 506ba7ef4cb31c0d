"""The words of the command line: options, how they are read, how the help lists them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")


def _number(text: str) -> int | float:
    """A number; whole ones as they are written, because a float loses the last bits of 64."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a number such as 0 or 0.5") from None


def _numbers(text: str) -> int | tuple[int, ...]:
    """One whole number, or one per axis."""
    try:
        return _one_or_all([int(part) for part in text.split(",")])
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not whole numbers such as 64 or 64,128,128"
        ) from None


def _words(text: str) -> str | tuple[str, ...]:
    """One word, or one per axis: hann, or 32,50%,0.25."""
    return _one_or_all([part.strip() for part in text.split(",")])


def _series(text: str) -> int | str:
    """A number, or all."""
    if text != "all" and not text.isdecimal():
        raise click.BadParameter(f"{text!r} is no number from 0 on, nor 'all'")
    return text if text == "all" else int(text)


def _axis(text: str) -> int | str:
    """An axis by number or name."""
    return int(text) if text.removeprefix("-").isdecimal() else text


def _one_or_all(values: Sequence[_T]) -> _T | tuple[_T, ...]:
    return values[0] if len(values) == 1 else tuple(values)


class TopicOption(click.Option):
    """An option that is listed under a topic."""

    def __init__(self, *args: Any, topic: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.topic = topic


class TopicCommand(click.Command):
    """A command whose help groups the options by topic."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, topic by topic."""
        topics: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                topics.setdefault(getattr(param, "topic", "Other"), []).append(record)
        for topic, records in topics.items():
            with formatter.section(topic):
                formatter.write_dl(records)


# how a value is read, by the way it is shown in the help
_TYPES: dict[str, Any] = {
    "N": int,
    "X": _number,
    "N[,N…]": _numbers,
    "NAME[,NAME…]": _words,
    "N|N%[,…]": _words,
    "AXIS": _axis,
    "N|all": _series,
}
# of resources, those that may be other ones when a run goes on
_HERE = ("--memory-limit", "--workers", "--backend")
OptionTable = dict[str, list[tuple[str, str, str]]]
FUNCTION: OptionTable = {
    "Function": [
        (
            "--apply",
            "NAME",
            "identity, gaussian, median, normalize, package.module:function or file.py:function.",
        ),
        ("--factory", "NAME", "Instead: called once per worker process, returns the function."),
        ("--param*", "KEY=VALUE", "Argument of either, as JSON: sigma=1.5, size=[1,3,3]."),
        ("--finalize", "NAME", "Runs on blended blocks before they are written (threshold, …)."),
        ("--batch-size", "N", "Patches per call, in a leading axis.  [one, without that axis]"),
        ("--channel-axis", "AXIS", "Axis handed whole to the function, such as c."),
        (
            "--input-dtype",
            "DTYPE",
            "Given to it; must hold all.  [the source's]",
        ),
        ("--out-channels", "N", "Channels that it returns.  [a trial call tells]"),
        ("--func-version", "TEXT", "Of the function: compared in place of its code."),
        ("--depends-on*", "FILE", "That it reads, such as weights: another content, another run."),
    ]
}
GRID: OptionTable = {
    "Patches": [
        ("--patch", "N[,N…]", "Size in voxels, 64 or 64,128,128.  [64]"),
        ("--overlap", "N|N%[,…]", "What neighbours share: 32, 50%, 0.5, or per axis.  [50%]"),
        ("--stride", "N[,N…]", "Instead: distance between patch starts."),
        (
            "--window",
            "NAME[,NAME…]",
            "hann, triangle, gaussian, gaussian:SIGMA, constant; crop for labels.  [hann]",
        ),
        ("--edge", "NAME[,NAME…]", "The last patch: shift it back, pad it, or drop it.  [shift]"),
        ("--offset", "N[,N…]", "Where the first patch starts.  [0]"),
        ("--fill-value", "X", "Value of voxels that no patch reaches."),
        ("--pad-mode", "MODE", "With pad: reflect, symmetric, edge, constant.  [reflect]"),
        ("--pad-value", "X", "With --pad-mode constant.  [0]"),
        (
            "--nan-policy",
            "propagate|omit|raise",
            "What a NaN in a result does.  [propagate]",
        ),
        ("--reduce", "mean|sum|max|min", "Of all values at a voxel; mean blends.  [mean]"),
    ],
    "Skipping": [
        ("--mask", "PATH", "Skip patches where this volume, maybe coarser, is 0."),
        ("--mask-factor", "N[,N…]", "Voxels of a cell of the mask.  [the plan tells]"),
        ("--skip-below", "X", "Skip patches whose largest value is below X."),
    ],
    "Volume": [
        ("--roi", "RANGES", "Part of the result: 0:64,:,100:612 or z=0:64,c=DAPI."),
        ("--level", "N", "Resolution, if several; 0 is the finest.  [0]"),
        ("--series", "N|all", "Image of a TIFF, if several; all: those alike as one stack."),
        (
            "--missing",
            "auto|fill|error",
            "A chunk that is not stored: its fill value, or an error.  [error if volpatch made it]",
        ),
        ("--fingerprint", "sample|full", "Look at 1,000 of its files, or at all.  [sample]"),
    ],
}
OUTPUT: OptionTable = {
    "Output": [
        ("--dtype", "DTYPE", "Of the output; values are rounded and clipped to it."),
        ("--chunks", "N[,N…]", "Of the output.  [the source's if handy, else 64,128,128]"),
        ("--shards", "N[,N…]", "Of the output, multiples of its chunks.  [none]"),
        ("--codec", "NAME", "zstd, zstd:LEVEL, lz4 or none.  [zstd]"),
    ]
}
RESOURCES: OptionTable = {
    "Resources": [
        ("--memory-limit", "SIZE", "Of all workers together, as 2GiB.  [half of what is free]"),
        ("--func-memory", "SIZE", "Of one call of the function.  [a trial call is measured]"),
        ("--workers", "N", "How many regions are computed at a time.  [one per core]"),
        ("--backend", "threads|processes", "processes for what holds Python's lock.  [threads]"),
        ("--concurrent-calls", "N", "Per process.  [1 with --factory]"),
        ("--region", "N[,N…]", "Extent of one task, in voxels.  [chosen]"),
    ]
}
_FAILING = [
    ("--retries", "N", "Tries of a region after its first failure.  [0]"),
    ("--fail-fast", "", "End at the first failure; else all other regions are computed first."),
]
FAILING: OptionTable = {"Failures": _FAILING}
PARTS: OptionTable = {
    "Failures": [
        *_FAILING,
        ("--part", "I/N", "Every N-th region, from I (from 0) on; the last part publishes."),
    ]
}
HERE: OptionTable = {
    "Resources": [row for row in RESOURCES["Resources"] if row[0] in _HERE],
    "Output": [("--progress", "auto|bar|log|none", "How far the run is, on stderr.  [auto]")],
}
STATUS_FORMAT: OptionTable = {
    "Output": [("--format", "text|json|ids", "ids: regions that are left, as 0,3-5.  [text]")]
}
INFO: OptionTable = {"Volume": [row for row in GRID["Volume"] if row[0] in ("--level", "--series")]}
SAVE: OptionTable = {"Output": [("--save", "FILE", "Save as a job that `run` repeats exactly.")]}
HOW: OptionTable = {
    "Output": [
        ("--overwrite", "", "Start over; an earlier output stays until the new one is complete."),
        ("--progress", "auto|bar|log|none", "How far the run is, on stderr.  [auto]"),
    ]
}
DURABLE: OptionTable = {
    "Output": [("--durability", "full|process", "Survive a power cut, or our death only.  [full]")]
}
FORMAT: OptionTable = {
    "Output": [("--format", "text|json", "How the result is printed on stdout.  [text]")]
}
_NAMES = {
    "--format": ("--format", "form"),
    "--param": ("--param", "params"),
    "--skip-below": ("--skip-below", "skip"),
}
_DEFAULTS = {
    "--overwrite": False,
    "--fail-fast": False,
    "--retries": 0,
    "--level": 0,
    "--progress": "auto",
    "--durability": "full",
    "--format": "text",
}


def options(*tables: OptionTable) -> Callable[[_F], _F]:
    """Give a command the options of these tables; a star behind a name means: repeatable."""
    rows = [(topic, *row) for table in tables for topic, part in table.items() for row in part]

    def decorate(function: _F) -> _F:
        for topic, starred, shown, text in reversed(rows):
            name = starred.removesuffix("*")
            kind = click.Choice(shown.split("|")) if "|" in shown and shown.islower() else None
            names = ("-o", name) if name == "--save" else _NAMES.get(name, (name,))
            function = click.option(
                *names,
                cls=TopicOption,
                topic=topic,
                type=kind or _TYPES.get(shown),
                metavar=shown if shown and kind is None else None,
                is_flag=not shown,
                multiple=starred.endswith("*"),
                default=_DEFAULTS.get(name),
                help=text,
            )(function)
        return function

    return decorate
