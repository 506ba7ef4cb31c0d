"""The command that tries a function before it is run."""

from __future__ import annotations

from typing import Any

import click

from volpatch.cli.given import functions_given, options_given
from volpatch.cli.options import FORMAT, FUNCTION, Row, TopicCommand, options
from volpatch.cli.streams import result_stream
from volpatch.core.options import JobOptions, VolumeOptions

_OF_FUNCTION = tuple(row for row in FUNCTION if "--finalize" not in row.flags)
_CHECK = Row(
    "Function", ("--check-reach",), "", "Find how far it looks: what --reach takes.", False
)


@click.command(
    "try",
    cls=TopicCommand,
    epilog="\b\nExamples:\n"
    "  volpatch try scan.ome.zarr --apply filters.py:sharpen --check-reach\n"
    "  volpatch try scan.tif --apply skimage.filters:threshold_local --param block_size=15 "
    "--check-reach",
)
@click.argument("source")
@options(
    _OF_FUNCTION,
    _CHECK,
    VolumeOptions,
    Row.of(JobOptions, "input_dtype", "missing"),
    Row("Volume", ("--roi",), "RANGES", "Part to try it on: 0:64,:,100:612 or z=0:64,c=DAPI."),
    FORMAT,
)
def try_(source: str, check_reach: bool, form: str, **words: Any) -> None:
    """Try a function on a box of SOURCE, of up to 128 voxels along each axis. Writes nothing.

    The box lies in the middle of the volume, or of --roi. The reach is the smallest with which
    blocks of several sizes give, bit for bit, what the whole box gives.
    """
    if not check_reach:
        raise click.UsageError("Say what to find out: --check-reach.")
    func, _ = functions_given(words)
    if func is None:
        raise click.UsageError("Give one of --apply and --factory: the function, or its maker.")
    from volpatch.cli import trial

    with result_stream() as result:  # the function may print
        result.tell(trial.told(trial.check_reach(source, func, **options_given(words)), form))
