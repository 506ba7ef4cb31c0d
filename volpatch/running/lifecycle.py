"""One run from its first look at the target to the published output.

    find the plan that is there  ->  or try the function once, and make one exclusively
    ask the ledger what is done  ->  compute the rest  ->  publish when nothing is missing

Whoever finds a plan checks that what is asked for now would give the same bytes, takes the
regions from it, and goes on. So to resume, to be one of many parts and to repair what went
bad later are one thing.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from volpatch.core import resources as machine
from volpatch.core.blending import BlendSpec
from volpatch.core.errors import RunError, SettingError, TargetError
from volpatch.functions.named import FunctionSpec
from volpatch.planning import job as jobs
from volpatch.planning.build import asked_region, fitted, target_spec
from volpatch.planning.fit import check_reading
from volpatch.planning.gone import GoneReader, remembered
from volpatch.planning.identity import Carried, identity
from volpatch.planning.inputs import (
    Looks,
    changed_files,
    fingerprint,
    overlaid,
    regions_reading,
    watched,
)
from volpatch.planning.plan import Plan, some
from volpatch.planning.provenance import made
from volpatch.report.progress import Progress
from volpatch.report.report import RunReport
from volpatch.running.pool import Pool, open_pool
from volpatch.running.scheduler import Run, publish_if_done
from volpatch.running.worker import Functions, Shared, Trial
from volpatch.storage.ledger import Ledger
from volpatch.storage.output import Output, Site
from volpatch.storage.plan_file import PlanFile
from volpatch.storage.records import State
from volpatch.storage.stores.local import check_target
from volpatch.storage.volume import Source

_VERSION = "give func_version=TEXT from the start, which replaces the comparison"
_RESULT = ("result_dtype", "channels_out", "final_dtype", "final_channels")


def warn_of_incomparable(plan: Plan) -> None:
    """Tell whoever does not look at the plan that the run could not be gone on with."""
    if not plan.incomparable:
        return
    frames = [frame for frame, _ in traceback.walk_stack(sys._getframe())]
    ours = [str(frame.f_globals.get("__name__")).startswith("volpatch.") for frame in frames]
    warnings.warn(
        f"after a kill this run could not be gone on with, as {some(plan.incomparable)} cannot "
        f"be compared with what another process has; {_VERSION}",
        stacklevel=[*ours, False].index(False) + 1,  # of whoever called volpatch
    )


@dataclass
class Request:
    """What was asked for.

    Attributes
    ----------
    draft : the plan as far as the user's words make it.
    carried : what the functions were before any call.
    overwrite : start over, and replace an earlier output when the new one is complete; for a
        part only the latter.
    part : (i, n): every n-th region, from i on.
    """

    draft: Plan
    functions: Functions
    source: Source
    work: Output
    carried: Carried
    overwrite: bool = False
    part: tuple[int, int] | None = None
    retries: int = 0
    fail_fast: bool = False
    progress: str = "none"
    announce: Callable[[Plan], None] = warn_of_incomparable
    begin: float = field(default_factory=time.perf_counter)

    @property
    def how(self) -> str:
        """How closely the input's files are looked at."""
        return self.draft.options["fingerprint"]

    @property
    def starts_over(self) -> bool:
        """Whether what there is counts for nothing."""
        return self.overwrite and self.part is None

    @property
    def is_gone(self) -> bool:
        """Whether the input is known only from what was made of it."""
        return isinstance(self.source.reader, GoneReader)

    def look(self) -> tuple[dict[str, Any], Looks]:
        """What the input is, and how its files look; what they were where they are gone."""
        reader = self.source.reader
        if isinstance(reader, GoneReader):
            return {**reader.identity, "files": self.how}, reader.looks
        return fingerprint(self.source, self.how)

    def settled(self, trial: Trial, region: Any = None, *, finished: bool = False) -> Settled:
        """The plan with what a trial told, its output, and what determines its bytes.

        Parameters
        ----------
        finished : whether nothing will be computed, so that no memory has to suffice.
        """
        draft = self.draft
        memory = trial.func_memory if draft.func_memory is None else draft.func_memory
        plan = replace(
            draft,
            blending=trial.blending,
            func_memory=memory,
            resident=trial.resident,
            parent=max(0, machine.resident_bytes() - draft.held),
        )
        if not finished:
            plan = fitted(plan, region)
        elif region is not None:
            plan = replace(plan, region=region)
        spec = target_spec(plan, self.source)
        source, looks = self.look()
        words = identity(plan, spec, self.carried, self.functions.patch_filter, source)
        blending = plan.blending
        layout = {
            "regions": plan.n_regions,
            "patches": plan.patches_computed,
            "region": list(plan.region),
            "result": {name: _plain(getattr(blending, name)) for name in _RESULT},
            "func_memory": memory,
            "resident": trial.resident,
            "input": looks,
            "volume": remembered(self.source),
            "made": made(plan),
            "depends_on": self.carried.depends,
        }
        file = PlanFile(words, layout, _job_words(plan))
        return Settled(plan, file, looks)


@contextmanager
def calling(request: Request) -> Iterator[Pool]:
    """Workers that call the functions; what calls change in them makes no other job."""
    try:
        with open_pool(request.draft, request.functions, request.source) as pool:
            yield pool
    finally:
        if request.draft.backend == "threads":  # processes have copies
            request.carried.called()


@dataclass(frozen=True)
class Settled:
    """A plan that lacks nothing.

    Attributes
    ----------
    file : what is to be written of it.
    looks : how the input's files look now.
    """

    plan: Plan
    file: PlanFile
    looks: Looks


@dataclass(frozen=True)
class Joined:
    """A settled plan, and the ledger that holds it: begun by this process or by another.

    Attributes
    ----------
    state : of the regions.
    replaced : numbers of files of the input that looked otherwise when the plan was made, or
        accepted last.
    stale : units that are recorded, of regions that read such files: to be made again.
    """

    settled: Settled
    ledger: Ledger
    state: State
    replaced: tuple[int, ...] = ()
    stale: frozenset[int] = frozenset()


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, np.dtype) else value


def _job_words(plan: Plan) -> dict[str, Any] | None:
    """The words that repeat the run, without functions that were given as objects.

    None where other things that have no name are among them, such as a mask in memory.
    """
    func, finalize = (
        function if isinstance(function, FunctionSpec) else None
        for function in (plan.func, plan.finalize)
    )
    try:
        found = jobs.to_json(replace(plan, func=func, finalize=finalize))
    except SettingError:
        return None
    return {name: value for name, value in found.items() if name != "figures"}


def _known(draft: Plan, file: PlanFile) -> Trial:
    """What a trial told when the plan was made."""
    result = file.layout["result"]
    values = {
        name: np.dtype(result[name]) if name.endswith("dtype") and result[name] else result[name]
        for name in _RESULT
    }
    blending: BlendSpec = replace(draft.blending, **values)
    return Trial(blending, file.layout["func_memory"], file.layout["resident"], 0.0)


def rejoined(
    request: Request, ledger: Ledger, *, finished: bool = False, checked: bool = False
) -> Joined:
    """The settled plan that another process, or an earlier run, has made.

    Parameters
    ----------
    ledger : of the output that the plan was found in.
    finished : whether that one is complete, and will be left as it is.
    checked : whether all that is written must come out with a checksum that is known.

    Raises
    ------
    TargetError
        What is asked for now would give other bytes, or names other regions.
    MemoryLimitError
        The memory limit is too small for the regions that are fixed.
    """
    draft, there = request.draft, ledger.file
    region = tuple(there.layout["region"])
    # where it is none of this plan's, its chunks or axes are others, which is what is to be said
    fits = len(region) == len(draft.unit) and all(
        edge % unit == 0 for edge, unit in zip(region, draft.unit, strict=True)
    )
    settled = request.settled(_known(draft, there), region if fits else None, finished=finished)
    place = request.work.folder if ledger.root == request.work.data else ledger.root
    there.check_same(settled.file, place, finished=finished)
    if request.carried.incomparable and not checked:
        raise TargetError(
            f"{str(place)!r} holds a run that nobody can tell to be the same: "
            f"{some(request.carried.incomparable)} cannot be compared with what it was then. Start "
            f"over with overwrite=True, and {_VERSION}"
        )
    made = (settled.plan.region, settled.plan.n_regions, len(settled.looks))
    found = (region, there.n_regions, len(there.layout["input"]))
    if made != found:
        raise TargetError(
            f"the plan of {str(place)!r} is damaged: its regions, their number and the number of "
            f"files of the input are {found} and should be {made}; start over with "
            f"overwrite=True"
        )
    asked = asked_region(draft)
    if not finished and asked is not None and asked != region:
        raise TargetError(
            f"region={asked} is asked for, but {str(place)!r} was begun with regions of {region}, "
            f"and its records are by region; leave region out to go on, or start over with "
            f"overwrite=True"
        )
    return _with_input(request, Joined(settled, ledger, ledger.state()), place)


def _with_input(request: Request, joined: Joined, place: Path) -> Joined:
    """Accept files of the input that changed if nothing that is done was made of them."""
    if request.is_gone:
        return joined
    source, state = request.source, joined.state
    plan, looks = joined.settled.plan, joined.settled.looks
    before = overlaid(joined.ledger.file.layout["input"], source, request.how, state.accepted)
    changed = changed_files(source, request.how, before, looks)
    if not changed:
        return joined
    spoiled = regions_reading(plan, source, changed, state.done)
    if spoiled:
        raise TargetError(
            f"{source.reader.file(changed[0])!r} of the input changed, and {len(spoiled)} regions "
            f"of {str(place)!r} that are done were made of what it was (region {spoiled[0]}, say); "
            f"restore it, or start over with overwrite=True"
        )
    redo = regions_reading(plan, source, changed, state.begun)
    stale = frozenset(unit for n in redo for unit in state.recorded(n).tolist())
    return replace(joined, replaced=tuple(changed), stale=stale)


def make_output(request: Request) -> RunReport:
    """Compute what is missing of an output, and publish it when nothing is.

    Raises
    ------
    VolpatchError
        See `volpatch.run`.
    """
    machine.forget_peak()
    work, part = request.work, request.part
    if part is not None and part[1] > 1 and request.carried.incomparable:
        raise SettingError(
            f"parts must be seen to be of the same function, but "
            f"{some(request.carried.incomparable)} cannot be compared; {_VERSION}"
        )
    with work.publishing():
        work.settle(ended=not request.overwrite)
    there = None if request.starts_over else work.building()
    late = None if request.starts_over else _published(request, there)
    if late is not None:
        return late
    if isinstance(request.source.reader, GoneReader):
        raise request.source.reader.error
    check_target(work.target, overwrite=work.may_replace, source_path=request.source.path)
    joined = None if there is None else rejoined(request, there)
    with calling(request) as pool:

        def rest() -> RunReport:
            mine = joined
            if mine is None:
                mine = _begin(request, pool)
                late = None if request.starts_over else _published(request, None)
                if late is not None:  # a twin was faster, and this tree was begun after it
                    _drop(work)
                    return late
            first, step = part or (0, 1)
            numbers = range(first, mine.ledger.file.n_regions, step)
            with work.in_use():
                return compute(request, mine, pool, work.go_on(), numbers, whole=part is None)

        return unless_published(request, rest)


def unless_published(request: Request, call: Callable[[], RunReport]) -> RunReport:
    """What `call` gives, or, where another process was faster, what is to be said then.

    That one has published the same output, and taken away the folders that this one used.
    """
    try:
        return call()
    except RunError:
        late = None if os.path.lexists(request.work.data) else _published(request, None)
        if late is None:
            raise
        return late


def _published(request: Request, begun: Ledger | None) -> RunReport | None:
    """The report of a run that comes when all is done and in its place; None if it is not.

    Parameters
    ----------
    begun : the ledger of the tree that is being built, if there is one.

    Raises
    ------
    TargetError
        There is the complete output of another job, and nothing that may replace it.
    IncompleteError
        There is that of this job, with objects missing.
    """
    work = request.work
    replaced = begun is not None and work.may_replace
    try:
        there = work.complete()
        if there is None or (replaced and begun is not None and there.file.id == begun.file.id):
            return None  # what is there is being made anew
        joined = rejoined(request, there, finished=True)
    except TargetError:
        if request.overwrite or replaced:
            return None  # that is what is to be replaced
        raise
    there.check_whole(joined.state)
    if begun is not None and begun.file.id == there.file.id:
        _drop(work)  # as a twin that was late has left it
    return _report(request, joined, None, complete=True)


def _drop(work: Output) -> None:
    """Remove a tree that nobody needs, unless somebody is at work in it."""
    with suppress(TargetError):
        work.discard()


def _begin(request: Request, pool: Pool) -> Joined:
    """Try the function, and make the plan, unless another process was first."""
    work, draft = request.work, request.draft
    check_reading(draft, asked_region(draft))
    settled = request.settled(pool.trial(draft))
    work.begin(overwrite=request.overwrite, anew=request.starts_over or work.is_leftover)
    ledger = Ledger.create(work.data, settled.file, work.site.disk)
    if ledger.file == settled.file:
        return Joined(settled, ledger, ledger.state())
    return rejoined(request, ledger)


def compute(
    request: Request,
    joined: Joined,
    pool: Pool,
    site: Site,
    numbers: Sequence[int],
    *,
    whole: bool = True,
    publish: bool = True,
    bad: Collection[int] = (),
    wanted: Mapping[int, str] | None = None,
) -> RunReport:
    """Compute those of the regions `numbers` that are not done; publish if that was all.

    Parameters
    ----------
    whole : whether all regions are asked for, so that a gap is an error.
    bad : units that are recorded, and not as they were written.
    wanted : SHA-256 that units must have which are computed again.
    """
    settled, ledger = joined.settled, joined.ledger
    plan, file = settled.plan, ledger.file
    request.announce(replace(plan, part=request.part))
    distrusted = {*bad, *joined.stale}
    state = ledger.state(distrusted) if distrusted else joined.state
    shared = Shared(plan, ledger.spec, site, wanted or {})
    run = Run(shared, ledger, state, numbers, request.retries, request.fail_fast)
    if joined.replaced:
        looks = dict(zip(watched(request.source, request.how), settled.looks, strict=True))
        run.log.write("input", -1, files=[[n, looks[n]] for n in joined.replaced])
    run.bar = Progress(round(plan.patches_computed * run.share), request.progress)
    if run.before:
        run.bar.say(f"going on: {run.before:,} of {file.n_regions:,} regions are done")
    run.compute(pool)
    complete = True
    if publish:
        _check_input(request, settled)
        complete = publish_if_done(run, request.work, whole=whole)
    return _report(request, joined, run, complete=complete)


def _check_input(request: Request, settled: Settled) -> None:
    """Refuse to publish what was made of an input that changed on the way."""
    _, now = fingerprint(request.source, request.how)
    changed = changed_files(request.source, request.how, settled.looks, now)
    if changed:
        raise RunError(
            f"{request.source.reader.file(changed[0])!r} of the input changed during the run, so "
            f"the output may be made of old and new parts, and is not published. Start over with "
            f"overwrite=True when the input is at rest"
        )


def _report(request: Request, joined: Joined, run: Run | None, *, complete: bool) -> RunReport:
    plan, spec = joined.settled.plan, joined.ledger.spec
    report = RunReport(
        target=str(request.work.target),
        shape=spec.shape,
        dtype=spec.dtype,
        seconds=time.perf_counter() - request.begin,
        regions=plan.n_regions,
        workers=plan.running,
        backend=plan.backend,
        redundancy=plan.redundancy,
        predicted_bytes=plan.peak,
        peak_bytes=max(0, machine.peak_bytes() - plan.held),
        held_bytes=plan.held,
        source_itemsize=request.source.dtype.itemsize,
        complete=complete,
        regions_before=joined.ledger.file.n_regions,
        part=request.part,
    )
    if run is None:
        gone = f"the input {request.source.path!r} is gone, so it was not compared"
        return replace(report, already=True, remarks=(gone,) if request.is_gone else ())
    return replace(
        report,
        stats=run.stats,
        voxels=run.voxels,
        raw_bytes=run.voxels * np.dtype(spec.dtype).itemsize,
        encoded_bytes=run.encoded_bytes,
        regions_done=run.regions_done,
        peak_bytes=max(0, run.peak_bytes - plan.held),
        regions_before=run.before,
        remarks=plan.source.remarks,
    )
