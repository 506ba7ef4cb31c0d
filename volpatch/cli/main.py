"""The command: words -> calls -> exit codes.

stdout carries the result and nothing else; what the user's function prints goes to stderr, with
progress and errors. Everything heavy is imported inside the commands, so that help is quick.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from volpatch.cli.given import functions_given, options_given
from volpatch.cli.options import (
    FORMAT,
    FUNCTION,
    SAVE,
    STATUS_FORMAT,
    Row,
    TopicCommand,
    as_command,
    options,
)
from volpatch.cli.streams import answer, details, open_streams, result_stream, tell_error
from volpatch.cli.try_ import try_
from volpatch.core.declared import table
from volpatch.core.errors import (
    IncompleteError,
    VolpatchError,
)
from volpatch.core.options import Conduct, PlanOptions, RetryOptions, RunOptions, VolumeOptions

if TYPE_CHECKING:
    from volpatch.planning.plan import Plan
    from volpatch.report.report import RunReport

FAILED, INTERRUPTED, TERMINATED = 1, 130, 143
# an interrupted run waits 5 s for calls of the user's function; what takes longer is cut off
PATIENCE_SECONDS = 8.0
# how long a finished command waits for threads and processes that the user's function left
LEAVING_SECONDS = 3.0
_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")


class Terminated(KeyboardInterrupt):
    """SIGTERM came: end like after an interrupt, with another exit code."""


def main() -> NoReturn:
    """Run the command that `sys.argv` asks for, and end the process."""
    try:
        open_streams()
        _watch_signals()
        # worker processes are ended without asking, and what they print must not be lost with them
        os.environ.setdefault("PYTHONUNBUFFERED", "1")
        code = execute(sys.argv[1:])
    except Terminated:
        _end(TERMINATED, "terminated")
    except KeyboardInterrupt:
        _end(INTERRUPTED, "interrupted")
    except Exception:
        sys.excepthook(*sys.exc_info())
        code = FAILED
    _leave(code)


def execute(args: Sequence[str]) -> int:
    """Run the command and say what went wrong, in one line on stderr.

    Parameters
    ----------
    args : sequence of str
        What follows `volpatch` on the command line.

    Returns
    -------
    int
        0 done, 1 the run failed, 2 usage, 3 input or settings refused, 4 not all is there.
    """
    try:
        return cli.main(list(args), prog_name="volpatch", standalone_mode=False) or 0
    except click.Abort as abort:
        raise abort.__cause__ or abort from None
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except VolpatchError as error:
        tell_error(as_command(str(error)), details(error))
        return error.exit_code
    except MemoryError as error:
        tell_error(
            f"out of memory: {error or 'no more could be had'}; a lower --memory-limit may help"
        )
        return FAILED
    except BrokenPipeError:  # help and guides, whose reader has left
        return 0
    except OSError as error:
        tell_error(error.strerror or str(error))
        return FAILED


def _end(code: int, message: str) -> NoReturn:
    """End at once: a call that is stuck in a thread must neither delay us nor write any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tell_error(message)
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    _end_hard(code)


def _end_hard(code: int) -> NoReturn:
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)


def _leave(code: int) -> NoReturn:
    """End with all said and done, also where the user's function left something running."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # it would be tried again on the way out, and change the exit code
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
    threads = [t for t in threading.enumerate() if not t.daemon]
    left = [f"thread {t.name}" for t in threads if t is not threading.main_thread()]
    left += [f"process {child.pid}" for child in multiprocessing.active_children()]

    def end_late() -> None:
        time.sleep(LEAVING_SECONDS)
        what = f"{len(left)} threads or processes that the function had left running"
        tell_error(f"ended {what} ({left[0]}{', ...' if left[1:] else ''})")
        _end_hard(code)

    if left:
        threading.Thread(target=end_late, daemon=True).start()
    sys.exit(code)


def _watch_signals() -> None:
    """Let SIGTERM end a run as SIGINT does, and either of them end it soon.

    The pipe is written as soon as a signal comes, also while the main thread is inside a call
    that does not come back and Python's own handlers have to wait.
    """

    def terminate(*_: object) -> None:
        raise Terminated

    def end_late() -> None:
        number = os.read(ours, 1)[0]
        time.sleep(PATIENCE_SECONDS)
        os.write(2, b"volpatch: ended in the middle of a call that did not come back\n")
        _end_hard(128 + number)

    signal.signal(signal.SIGTERM, terminate)
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    threading.Thread(target=end_late, daemon=True).start()


# -- commands ------------------------------------------------------------------------------


def _show_version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        click.echo(f"volpatch {import_module('volpatch').__version__}")
        ctx.exit()


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Try it: volpatch demo",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version.",
)
def cli() -> None:
    """Run a function over overlapping patches of a volume that does not fit in memory, and blend
    the results into one seamless volume.

    Exit codes: 0 done, 1 the run failed, 2 usage, 3 input or settings refused, 4 some regions
    failed or are missing, 130 interrupted, 143 terminated.
    """


@cli.command(
    cls=TopicCommand,
    epilog="\b\nExamples:\n  volpatch info scan.ome.zarr\n  volpatch info slices/ --format json\n"
    "  volpatch info out.ome.zarr --command",
)
@click.argument("path")
@click.option(
    "--command",
    "as_line",
    is_flag=True,
    help="Of an output: print the line that makes it again, byte for byte.",
)
@options(VolumeOptions, FORMAT)
def info(path: str, as_line: bool, form: str, **words: Any) -> None:
    """Say what the volume at PATH is; reads metadata only. Of an output also how it was made.

    A Zarr array, an OME-Zarr image, a TIFF stack or a folder of TIFF slices; a quoted pattern
    such as 'scan/DAPI_z*.tif' is a folder of just those files.
    """
    from volpatch.report.info import command_of, facts_of, info_text
    from volpatch.storage.open import open_source

    if as_line:
        answer(command_of(path))
        return

    source = open_source(path, **options_given(words))
    facts = facts_of(source)
    answer(json.dumps(facts, indent=2) if form == "json" else info_text(facts))


@cli.command(epilog="\b\nExample:\n  volpatch filters")
@options(FORMAT)
def filters(form: str) -> None:
    """List the ready-made functions: parameters, reach, dtype, speed."""
    from volpatch.cli import filters as known

    answer(json.dumps(known.facts(), indent=2) if form == "json" else known.text())


cli.add_command(try_)


@cli.command(
    cls=TopicCommand,
    epilog="\b\nExamples:\n"
    "  volpatch plan scan.ome.zarr --patch 64 --overlap 50% --memory-limit 2GiB\n"
    "  volpatch plan scan.tif out.ome.zarr --apply median --window crop -o job.json\n"
    "  volpatch run job.json",
)
@click.argument("source")
@click.argument("target", required=False)
@options(FUNCTION, PlanOptions, SAVE, FORMAT)
def plan(source: str, target: str | None, save: str | None, form: str, **words: Any) -> None:
    """Lay out a run of SOURCE into TARGET: regions, patches, traffic, memory. Computes nothing.

    With --format json the whole job is printed, as -o saves it.
    """
    from volpatch.planning import job
    from volpatch.running import api

    func, finalize = functions_given(words)
    said: PlanOptions = options_given(words)
    with result_stream() as result:  # a function's file may print while it is imported
        planned = api.plan(source, target, func=func, finalize=finalize, **said)
        if save is not None:
            job.save(planned, save)
        as_json = form == "json"
        told = json.dumps(job.to_json(planned), indent=2) if as_json else planned.explain()
        result.tell(told if as_json else as_command(told))
    if save is not None:
        click.echo(f"saved {save}", err=True)


@cli.command(
    cls=TopicCommand,
    epilog="\b\nExamples:\n"
    "  volpatch run scan.ome.zarr out.ome.zarr --apply gaussian --param sigma=1.5\n"
    "  volpatch run slices/ out.ome.zarr --apply median --param size=3 --window crop\n"
    "  volpatch run scan.tif out.ome.zarr --factory model.py:load --batch-size 8 --patch 96\n"
    "  volpatch run job.json other.ome.zarr --overwrite\n"
    "  volpatch run scan.ome.zarr out.ome.zarr --apply gaussian --part $SLURM_ARRAY_TASK_ID/100",
)
@click.argument("source")
@click.argument("target", required=False)
@options(FUNCTION, RunOptions, FORMAT)
def run(source: str, target: str | None, **words: Any) -> None:
    """Run a function over patches of SOURCE and blend the results into TARGET, an OME-Zarr.

    SOURCE may also be a job that `volpatch plan -o` saved. TARGET gets its name when it is
    complete. A run that was ended goes on when the same command is given again; so do any
    number of parts, on machines that share the disk.
    The plan comes first, the report last; its last line begins with `complete`.
    """
    as_json = words.pop("form") == "json"
    of = _job_call if source.endswith(".json") else _run_call
    _show(as_json, of(source, target, words))


def _show(as_json: bool, call: Callable[[Callable[[Plan], None]], RunReport]) -> None:
    """Print the plan and then the report of a run."""
    with result_stream() as result:

        def announce(plan: Plan) -> None:
            if as_json:
                with suppress(OSError):
                    print(as_command(str(plan)), file=sys.stderr, flush=True)
            else:
                result.tell(as_command(str(plan)))

        report = call(announce)
        told = json.dumps(report.to_json(), indent=2) if as_json else as_command(str(report))
        result.tell(told)


@cli.command(
    cls=TopicCommand,
    epilog="\b\nExamples:\n  volpatch demo\n  volpatch demo ~/volpatch-demo --overwrite",
)
@click.argument("folder", default="volpatch-demo")
@options(Row.of(Conduct, "overwrite", "progress"))
def demo(folder: str, overwrite: bool, progress: str) -> None:
    """Make a noisy specimen bigger than the memory allowed, denoise it, and say what to look at.

    Takes about a minute and 1 GB in FOLDER (./volpatch-demo); no network.
    """
    from volpatch.cli.demo import demo as show

    show(folder, overwrite=overwrite, progress=progress)


@cli.command(epilog="\b\nExamples:\n  volpatch guide\n  volpatch guide windows")
@click.argument("name", required=False)
def guide(name: str | None) -> None:
    """Show the guide NAME; without a name, list all guides."""
    from volpatch.cli import guide as guides

    guides.show(name)


_RUNNING = tuple(name for name, option in table(Conduct).items() if option.shown is not None)


def _run_call(
    source: str, target: str | None, words: dict[str, Any]
) -> Callable[[Callable[[Plan], None]], RunReport]:
    if target is None:
        raise click.UsageError("Missing argument 'TARGET'.")
    if (words["apply"] is None) == (words["factory"] is None):
        raise click.UsageError("Give one of --apply and --factory: the function, or its maker.")
    from volpatch.running import api

    func, finalize = functions_given(words)
    said: RunOptions = options_given(words)

    def call(announce: Callable[[Plan], None]) -> RunReport:
        said["announce"] = announce
        return api.run(func, source, target, finalize=finalize, **said)

    return call


def _job_call(
    path: str, target: str | None, words: dict[str, Any]
) -> Callable[[Callable[[Plan], None]], RunReport]:
    ctx = click.get_current_context()
    free = ("source", "target", "form", *_RUNNING)
    for param in ctx.command.params:
        name = param.name or ""
        given = ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
        if given and name not in free:
            raise click.UsageError(
                f"{param.opts[0]} is settled by the job {path}; leave it out, or plan again."
            )
    from volpatch.running import api

    said: Conduct = options_given({name: words[name] for name in _RUNNING})

    def call(announce: Callable[[Plan], None]) -> RunReport:
        said["announce"] = announce
        return api.run_job(path, target=target, **said)

    return call


# -- afterwards ----------------------------------------------------------------------------


@cli.command(
    cls=TopicCommand,
    epilog="\b\nExamples:\n  volpatch status out.ome.zarr\n"
    "  sbatch --array=$(volpatch status out.ome.zarr --format ids) job.sh",
)
@click.argument("target")
@options(STATUS_FORMAT)
def status(target: str, form: str) -> None:
    """Say which regions of TARGET are done, failed or missing, and how fast it goes.

    Works while the run is under way, after it was ended, and on the finished output.
    """
    from volpatch.running import status as states

    found = states.status(target)
    if form == "ids":
        answer(found.ids)
    else:
        answer(json.dumps(found.to_json(), indent=2) if form == "json" else str(found))


@cli.command(
    cls=TopicCommand,
    epilog="\b\nExamples:\n  volpatch verify out.ome.zarr\n  volpatch verify copy.ome.zarr --deep",
)
@click.argument("target")
@click.option("--deep", is_flag=True, help="Decode every voxel too.")
@options(FORMAT)
def verify(target: str, deep: bool, form: str) -> int:
    """Compare every object of TARGET with the size and SHA-256 it was written with.

    Exit code 4 if any is missing or another; `volpatch retry` makes those again.
    """
    from volpatch.running import status as states

    found = states.verify(target, deep=deep)
    answer(json.dumps(found.to_json(), indent=2) if form == "json" else str(found))
    return 0 if found.ok else IncompleteError.exit_code


@cli.command(
    cls=TopicCommand,
    epilog="\b\nExamples:\n  volpatch retry out.ome.zarr\n"
    "  volpatch retry out.ome.zarr --retries 2 --memory-limit 8GiB",
)
@click.argument("target")
@options(RetryOptions, FORMAT)
def retry(target: str, form: str, **words: Any) -> None:
    """Compute again what failed in TARGET, or is no longer as it was written; nothing else.

    The function, its parameters and the input are those that TARGET was begun with.
    """
    from volpatch.running import api

    said: RetryOptions = options_given(words)

    def call(announce: Callable[[Plan], None]) -> RunReport:
        said["announce"] = announce
        return api.retry(target, **said)

    _show(form == "json", call)


@cli.command(epilog="\b\nExample:\n  volpatch commit out.ome.zarr")
@click.argument("target")
def commit(target: str) -> None:
    """Check TARGET and give it its name, if all regions are done; else list what is missing.

    The run, or the last of its parts, does so by itself.
    """
    from volpatch.running import status as states

    path, already = states.committed(target)
    answer(f"complete {'already ' if already else ''}{path}")


@cli.command(epilog="\b\nExample:\n  volpatch clean out.ome.zarr")
@click.argument("target")
def clean(target: str) -> None:
    """Remove what an unfinished run left beside TARGET; a finished TARGET stays.

    Only what volpatch made is removed.
    """
    from volpatch.running import status as states

    removed = states.clean(target)
    answer(f"removed {target}.volpatch" if removed else "nothing was left to remove")
