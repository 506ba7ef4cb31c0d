"""The options of a job: each declared once, here; all that depends on them is derived.

    stride: Annotated[Sizes | None, Option(help="Distance between patch starts.", ...)]
                |
                |-> checks      `declared.completed`: names, choices, defaults
                |-> Python      `declared.takes`: signature and docstring of plan, run, ...
                |-> command     `cli.options`: flags, and what --help says of them
                |-> job file    `planning.job`: what `plan -o` saves
                '-> identity    `planning.identity`: what makes it another job

Sizes are in voxels, one for all patched axes or one each (a sequence, or a mapping by axis
name).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, get_args

from volpatch.core.declared import Option, check_choices
from volpatch.core.grid import EDGES, PAD_MODES, Overlap

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from volpatch.core.window import Window

Sizes = int | Sequence[int] | Mapping[str, int]
Durability = Literal["full", "process"]

REDUCTIONS = ("mean", "sum", "max", "min")
NAN_POLICIES = ("propagate", "omit", "raise")
BACKENDS = ("threads", "processes")
MISSING = ("auto", "fill", "error")
FINGERPRINTS = ("sample", "full")
DURABILITIES = get_args(Durability)
DEFAULT_CODEC = "blosc-zstd:1"
PROGRESS = ("auto", "bar", "log", "none")


class VolumeOptions(TypedDict, total=False):
    """Which of the images in a path is meant."""

    level: Annotated[
        int,
        Option(
            help="Resolution, if several; 0 is the finest.",
            topic="Volume",
            default=0,
            shown="N",
            decides="source",
        ),
    ]
    series: Annotated[
        int | str | None,
        Option(
            help="Image of a TIFF, if several; all: those alike as one stack.",
            topic="Volume",
            shown="N|all",
            decides="source",
        ),
    ]


class BlendOptions(TypedDict, total=False):
    """What determines the voxels of a result."""

    reach: Annotated[
        Sizes | None,
        Option(
            help="Instead of patches: how far the function looks to each side. Exact.",
            topic="Patches",
            without="filters know it",
            shown="N[,N…]",
            decides="grid",
            synonyms=("depth", "halo"),
        ),
    ]
    overlap: Annotated[
        Overlap | Sequence[Overlap] | Mapping[str, Overlap] | None,
        Option(
            help="What neighbours share: 32, 50%, 0.5, or per axis.",
            topic="Patches",
            without="50%",
            shown="N|N%[,…]",
            decides="grid",
        ),
    ]
    stride: Annotated[
        Sizes | None,
        Option(
            help="Instead: distance between patch starts.",
            topic="Patches",
            shown="N[,N…]",
            decides="grid",
            synonyms=("step", "strides"),
        ),
    ]
    window: Annotated[
        "Window | Sequence[Window] | Mapping[str, Window] | None",
        Option(
            help="hann, triangle, gaussian, gaussian:SIGMA, constant; crop for labels.",
            topic="Patches",
            without="hann",
            shown="NAME[,NAME…]",
            decides="window",
            synonyms=("mode", "blend", "importance_map"),
        ),
    ]
    edge: Annotated[
        str | Sequence[str] | Mapping[str, str],
        Option(
            help="The last patch: shift it back, pad it, or drop it.",
            topic="Patches",
            default=EDGES[0],
            shown="NAME[,NAME…]",
            decides="grid",
            synonyms=("boundary",),
        ),
    ]
    offset: Annotated[
        Sizes,
        Option(
            help="Where the first patch starts.",
            topic="Patches",
            default=0,
            shown="N[,N…]",
            decides="grid",
        ),
    ]
    fill_value: Annotated[
        float | None,
        Option(
            help="Value of voxels that no patch reaches.",
            topic="Patches",
            shown="X",
            decides="fill_value",
            synonyms=("fill", "cval", "background"),
        ),
    ]
    pad_mode: Annotated[
        str,
        Option(
            help="With pad: reflect, symmetric, edge, constant.",
            topic="Patches",
            default=PAD_MODES[0],
            choices=PAD_MODES,
            shown="MODE",
            decides="pad_mode",
            synonyms=("padding_mode",),
        ),
    ]
    pad_value: Annotated[
        float,
        Option(
            help="With pad_mode constant.",
            topic="Patches",
            default=0,
            shown="X",
            decides="pad_value",
            synonyms=("constant_values",),
        ),
    ]
    nan_policy: Annotated[
        str,
        Option(
            help="What a NaN in a result does.",
            topic="Patches",
            default=NAN_POLICIES[0],
            choices=NAN_POLICIES,
            shown="|".join(NAN_POLICIES),
            decides="nan_policy",
            synonyms=("nan",),
        ),
    ]
    reduce: Annotated[
        str,
        Option(
            help="Of all values at a voxel; mean blends.",
            topic="Patches",
            default=REDUCTIONS[0],
            choices=REDUCTIONS,
            shown="|".join(REDUCTIONS),
            decides="reduce",
            synonyms=("reduction", "aggregate"),
        ),
    ]
    mask: Annotated[
        Any,
        Option(
            help="Skip patches where this volume, maybe coarser, is 0.",
            topic="Skipping",
            shown="PATH",
            decides="mask",
        ),
    ]
    mask_factor: Annotated[
        Sizes | None,
        Option(
            help="Voxels of a cell of the mask.",
            topic="Skipping",
            without="the plan tells",
            shown="N[,N…]",
            decides="mask",
        ),
    ]
    skip: Annotated[
        Callable[[Any], Any] | float | None,
        Option(
            help="Skip patches whose largest value is below X.",
            topic="Skipping",
            shown="X",
            flag="--skip-below",
            decides="skip",
            synonyms=("skip_below", "threshold"),
        ),
    ]
    dtype: Annotated[
        "DTypeLike | None",
        Option(
            help="Of the output; values are rounded and clipped to it.",
            topic="Output",
            shown="DTYPE",
            decides="output",
            synonyms=("out_dtype", "output_dtype"),
        ),
    ]
    batch_size: Annotated[
        int | None,
        Option(
            help="Patches per call, in a leading axis.",
            topic="Function",
            without="one, without that axis",
            shown="N",
            decides="batches",
            synonyms=("sw_batch_size", "batch"),
        ),
    ]
    input_dtype: Annotated[
        "DTypeLike | None",
        Option(
            help="Given to it; must hold all.",
            topic="Function",
            without="the source's",
            shown="DTYPE",
            decides="input_dtype",
        ),
    ]
    out_channels: Annotated[
        int | None,
        Option(
            help="Channels that it returns.",
            topic="Function",
            without="a trial call tells",
            shown="N",
            decides="output",
        ),
    ]


class Resources(TypedDict, total=False):
    """What a run may take of a machine; it may be other resources when the run goes on."""

    memory_limit: Annotated[
        int | str | None,
        Option(
            help="Of all workers together, as 2GiB.",
            topic="Resources",
            without="half of what is free",
            shown="SIZE",
            synonyms=("memory", "max_mem", "memory_target"),
        ),
    ]
    workers: Annotated[
        int | None,
        Option(
            help="How many regions are computed at a time.",
            topic="Resources",
            without="one per core",
            shown="N",
            synonyms=("n_workers", "num_workers", "n_jobs", "jobs"),
        ),
    ]
    backend: Annotated[
        str,
        Option(
            help="processes for what holds Python's lock.",
            topic="Resources",
            default=BACKENDS[0],
            choices=BACKENDS,
            shown="|".join(BACKENDS),
            synonyms=("scheduler", "executor"),
        ),
    ]


class PatchOption(TypedDict, total=False):
    """The one that comes first."""

    patch: Annotated[
        Sizes | None,
        Option(
            help="Size in voxels, for all axes or each.",
            topic="Patches",
            without="64",
            shown="N[,N…]",
            decides="grid",
            synonyms=("patch_size", "patch_shape", "roi_size", "tile_shape", "tile_size"),
        ),
    ]


class JobOptions(PatchOption, BlendOptions, Resources, total=False):
    """What a job on stored volumes needs besides."""

    channel_axis: Annotated[
        int | str | None,
        Option(
            help="Axis handed whole to the function, such as c.",
            topic="Function",
            shown="AXIS",
            decides="channel_axis",
        ),
    ]
    missing: Annotated[
        str,
        Option(
            help="A chunk that is not stored: its fill value, or an error.",
            topic="Volume",
            default=MISSING[0],
            without="error if volpatch made it",
            choices=MISSING,
            shown="|".join(MISSING),
            decides="missing",
        ),
    ]
    roi: Annotated[
        Any,
        Option(
            help="Part of the result: 0:64,:,100:612 or z=0:64,c=DAPI.",
            topic="Volume",
            shown="RANGES",
            decides="roi",
            synonyms=("crop", "bbox"),
        ),
    ]
    chunks: Annotated[
        Sizes | None,
        Option(
            help="Of the output.",
            topic="Output",
            without="the source's if handy, else 64,128,128",
            shown="N[,N…]",
            decides="output",
            synonyms=("chunk_size", "chunksize"),
        ),
    ]
    shards: Annotated[
        Sizes | None,
        Option(
            help="Of the output, multiples of its chunks.",
            topic="Output",
            without="none",
            shown="N[,N…]",
            decides="output",
        ),
    ]
    codec: Annotated[
        str,
        Option(
            help="blosc-zstd, blosc-lz4, zstd, maybe with :LEVEL, or none.",
            topic="Output",
            default=DEFAULT_CODEC,
            shown="NAME",
            decides="output",
            synonyms=("compressor", "compression", "compressors"),
        ),
    ]
    region: Annotated[
        Sizes | None,
        Option(
            help="Extent of one task, in voxels.",
            topic="Resources",
            without="chosen",
            shown="N[,N…]",
        ),
    ]
    func_memory: Annotated[
        int | str | None,
        Option(
            help="Of one call of the function.",
            topic="Resources",
            without="a trial call is measured",
            shown="SIZE",
        ),
    ]
    concurrent_calls: Annotated[
        int | None,
        Option(
            help="Per process.",
            topic="Resources",
            without="1 with a factory",
            shown="N",
            synonyms=("calls",),
        ),
    ]
    func_version: Annotated[
        str | None,
        Option(
            help="Of the function: compared in place of its code.",
            topic="Function",
            shown="TEXT",
            decides="func_version",
            synonyms=("version",),
        ),
    ]
    depends_on: Annotated[
        Sequence[str] | None,
        Option(
            help="That it reads, such as weights: another content, another run.",
            topic="Function",
            shown="FILE",
            many=True,
            decides="depends_on",
            synonyms=("depends", "dependencies"),
        ),
    ]
    fingerprint: Annotated[
        str,
        Option(
            help="Look at 1,000 of its files, or at all.",
            topic="Volume",
            default=FINGERPRINTS[0],
            choices=FINGERPRINTS,
            shown="|".join(FINGERPRINTS),
        ),
    ]


class Failing(TypedDict, total=False):
    """What happens where the function fails."""

    retries: Annotated[
        int,
        Option(
            help="Tries of a region after its first failure.",
            topic="Failures",
            default=0,
            shown="N",
        ),
    ]
    fail_fast: Annotated[
        bool,
        Option(
            help="End at the first failure; else all other regions are computed first.",
            topic="Failures",
            default=False,
            shown="",
        ),
    ]


class Telling(TypedDict, total=False):
    """How a run is seen, and how safely it writes."""

    progress: Annotated[
        str,
        Option(
            help="How far the run is, on stderr.",
            topic="Output",
            default="none",
            choices=PROGRESS,
            shown="|".join(PROGRESS),
            synonyms=("verbose", "progressbar"),
        ),
    ]
    durability: Annotated[
        Durability,
        Option(
            help="Survive a power cut, or our death only.",
            topic="Output",
            default="full",
            choices=DURABILITIES,
            shown="|".join(DURABILITIES),
        ),
    ]
    announce: Annotated[
        Callable[[Any], None] | None,
        Option(
            help="Is given the final plan before the first region starts. Without it a warning "
            "tells of a function that cannot be compared, so that nobody could go on.",
            topic="Output",
        ),
    ]


class Conduct(Failing, Telling, total=False):
    """How a run is conducted; it changes nothing of what comes out."""

    overwrite: Annotated[
        bool,
        Option(
            help="Start over; an earlier output stays until the new one is complete.",
            topic="Output",
            default=False,
            shown="",
            synonyms=("force",),
        ),
    ]
    part: Annotated[
        str | tuple[int, int] | None,
        Option(
            help="Every N-th region, from I (from 0) on; the last part publishes.",
            topic="Failures",
            shown="I/N",
        ),
    ]


class PlanOptions(VolumeOptions, JobOptions, total=False):
    """All that `plan` takes."""


class RunOptions(PlanOptions, Conduct, total=False):
    """All that `run` takes."""


class RetryOptions(Resources, Failing, Telling, total=False):
    """All that `retry` takes."""


def check_choice(name: str, value: object) -> None:
    """Refuse a value that is none of an option's choices, wherever it was given.

    Raises
    ------
    SettingError
    """
    check_choices({name: value}, RunOptions)
