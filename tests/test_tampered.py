"""Plans, records, notes and jobs with values that nobody wrote are told of in a sentence."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import volpatch
from tests.helpers_functions import MISDEEDS
from tests.helpers_runs import GRID, run, volume_with, words
from tests.helpers_stores import store
from volpatch.storage.plan_file import digest
from volpatch.storage.records import encode_line
from volpatch.storage.soundness import bad_field, is_event, is_note

GONE = object()
ODD: list[Any] = [
    *(GONE, None, True, -1, 0, 3, 2**40, 2**70, 0.5, 1e300, float("nan"), "x", "", "../../x"),
    *([], [1], [-1], [2**40] * 3, ["x"], [[]], [["x", 1, "y"]], {}, {"a": 1}),
]
CODES = {0, 1, 3, 4}


def fields(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where all values in nested lists and objects are; of long lists the first two."""
    if place:
        yield place
    pairs = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        pairs = enumerate(value[:2])
    for key, inner in pairs:
        yield from fields(inner, (*place, key))


def tampered(value: Any, place: tuple[Any, ...], odd: Any) -> Any:
    value = copy.deepcopy(value)
    inner = value
    for key in place[:-1]:
        inner = inner[key]
    if odd is GONE:
        del inner[place[-1]]
    else:
        inner[place[-1]] = odd
    return value


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """A finished output, and one of which a region failed."""
    folder = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patching:
        patching.setenv("VOLPATCH_TEST_FOLDER", str(folder))
        store(folder / "in.zarr", volume_with({4: list(MISDEEDS).index("raises")})[:8, :16, :16], 8)
        name = "tests.helpers_functions:misbehave"
        with pytest.raises(volpatch.IncompleteError):
            run(name, folder / "in.zarr", folder / "begun.zarr", workers=1)
        (folder / "mended").touch()
        run(name, folder / "in.zarr", folder / "done.zarr", workers=1)
    return folder


LEDGERS = {"begun": "begun.zarr.volpatch/data/.volpatch", "done": "done.zarr/.volpatch"}


def put(folder: Path, state: str, here: Path) -> Path:
    """Copy an output to where a test may spoil it; gives its ledger."""
    for name in (f"{state}.zarr", f"{state}.zarr.volpatch"):
        shutil.rmtree(here / name, ignore_errors=True)
        if (folder / name).exists():
            shutil.copytree(folder / name, here / name)
    return here / LEDGERS[state]


def write_plan(ledger: Path, parts: dict[str, Any]) -> None:
    """A plan with a good checksum."""
    parts = {name: parts.get(name) for name in ("identity", "layout", "job")}
    top = {"volpatch_plan": 1, "id": digest(parts["identity"]), "sum": digest(parts)}
    (ledger / "plan.json").write_text(json.dumps({**top, **parts}))


def parts_of(ledger: Path) -> dict[str, Any]:
    plan = json.loads((ledger / "plan.json").read_text())
    return {name: plan[name] for name in ("identity", "layout", "job")}


def look(ask, source: Path, target: Path, what: Any) -> None:
    """All commands, one after the other: each ends with a code of ours, and a sentence if bad."""
    for call in (
        ("status", target),
        ("status", target, "--format", "json"),
        ("verify", target, "--deep"),
        ("retry", target, "--durability", "process", "--workers", 1),
        ("commit", target),
        words(source, target, "misbehave", workers=1),
        ("clean", target),
    ):
        code, _, err = ask(*call)
        assert code in CODES, (what, call[0], err)
        assert not code or code == 4 or err.startswith("volpatch: "), (what, call[0], err)


def choices(value: Any, some: int, seed: int) -> list[tuple[tuple[Any, ...], Any]]:
    """Some fields, each with an odd value."""
    rng = random.Random(seed)
    return rng.sample([(place, odd) for place in fields(value) for odd in ODD], some)


SOME = pytest.mark.parametrize("some", [8, pytest.param(120, marks=pytest.mark.slow)])


@pytest.mark.parametrize("state", LEDGERS)
@SOME
def test_a_plan_with_odd_values_is_no_defect(outputs, here, ask, state, some):
    (here / "mended").touch()
    parts = parts_of(outputs / LEDGERS[state])
    for place, odd in choices(parts, some, seed=5):
        ledger = put(outputs, state, here)
        write_plan(ledger, tampered(parts, place, odd))
        look(ask, outputs / "in.zarr", here / f"{state}.zarr", (place, odd))


@pytest.mark.parametrize("state", LEDGERS)
@SOME
def test_a_record_with_odd_values_is_no_defect(outputs, here, ask, state, some):
    (here / "mended").touch()
    for log in sorted((outputs / LEDGERS[state] / "records").iterdir()):
        events = [json.loads(line.rpartition("\t")[0]) for line in log.read_text().splitlines()]
        kinds = {event["kind"]: number for number, event in enumerate(events)}
        for kind, number in kinds.items():
            for place, odd in choices(events[number], some // 4, seed=len(kind)):
                ledger = put(outputs, state, here)
                lines = [*events]
                lines[number] = tampered(events[number], place, odd)
                (ledger / "records" / log.name).write_bytes(b"".join(map(encode_line, lines)))
                look(ask, outputs / "in.zarr", here / f"{state}.zarr", (kind, place, odd))


@SOME
def test_a_job_with_odd_values_is_no_defect(outputs, here, ask, some):
    target = here / "out.zarr"
    grid = (w for name, n in GRID.items() for w in (f"--{name}", n))
    apply = ("--apply", "tests.helpers_functions:shade", "--codec", "blosc-lz4")
    code, *_ = ask("plan", outputs / "in.zarr", target, *apply, *grid, "-o", here / "job.json")
    assert code == 0
    job = json.loads((here / "job.json").read_text())
    for place, odd in choices(job, some, seed=7):
        for name in ("out.zarr", "out.zarr.volpatch"):
            shutil.rmtree(here / name, ignore_errors=True)
        (here / "odd.json").write_text(json.dumps(tampered(job, place, odd)))
        code, _, err = ask("run", here / "odd.json", target, "--durability", "process")
        assert code in CODES, (place, odd, err)
        assert not code or err.startswith("volpatch: "), (place, odd, err)


BAD_PLANS = {
    "identity": ("identity", []),
    "identity.output": ("identity.output.shape", [2**40] * 3),
    "layout.regions": ("layout.regions", 2**62),
    "layout.patches": ("layout.patches", [[]]),
    "layout.result": ("layout.result.result_dtype", "[-1]"),
    "layout.region": ("layout.region", [0, 8, 8]),
    "job": ("job", 1e300),
}


@pytest.mark.parametrize("name", BAD_PLANS)
def test_the_field_of_a_plan_that_cannot_be_is_named(outputs, here, ask, name):
    ledger = put(outputs, "begun", here)
    place, odd = BAD_PLANS[name]
    write_plan(ledger, tampered(parts_of(ledger), tuple(place.split(".")), odd))
    for call in (("status", here / "begun.zarr"), ("verify", here / "begun.zarr")):
        code, out, err = ask(*call)
        assert (code, out) == (3, "")
        assert f"is damaged: its {name} cannot be what it says; restore it from a copy" in err


@pytest.mark.parametrize(
    ("place", "odd", "says"),
    [
        (("layout", "region"), [8, 8, 4], "its regions, their number and the number of files"),
        (("layout", "regions"), 11, "its regions, their number and the number of files"),
        (("layout", "input"), [], "its regions, their number and the number of files"),
        (("job", "options"), None, "is damaged: its 'options' is None"),
        (("job", "function"), [], "is damaged: its 'function' is []"),
    ],
)
def test_a_plan_at_odds_with_itself_is_not_gone_on_with(outputs, here, ask, place, odd, says):
    ledger = put(outputs, "begun", here)
    write_plan(ledger, tampered(parts_of(ledger), place, odd))
    code, _, err = ask("retry", here / "begun.zarr")
    assert code == 3
    assert says in err


def test_records_that_cannot_be_cost_what_they_tell_of_alone(outputs, here, ask):
    ledger = put(outputs, "begun", here)
    (here / "mended").touch()
    odd = [
        {"kind": "layer", "region": 0, "of": 1, "units": [[0, 1]], "patches": 1, "clipped": 0},
        {"kind": "layer", "region": 0, "of": 1, "units": [[2**60, 1, ""]], "patches": 2**62,
         "clipped": 0, "time": 1e18},
        {"kind": "failed", "region": [1], "error": ""},
        {"kind": "failed", "region": 0, "error": [-1]},
        {"kind": "commit", "files": [["../in.zarr/zarr.json", 0, "x"]], "time": 1},
        {"kind": []},
        {"kind": "start", "region": True},
        {"kind": "commit", "files": [], "time": 1, "region": [1]},
    ]  # fmt: skip
    assert [is_event(event) for event in odd] == [n == 1 for n in range(8)]
    (ledger / "records/odd.log").write_bytes(
        b"".join(map(encode_line, odd)) + b'{"a":' * 99_999 + b"\t00000000\n"
    )
    code, *_ = ask("status", here / "begun.zarr")
    assert code == 0
    code, _, err = ask(*words(outputs / "in.zarr", here / "begun.zarr", "misbehave"))
    assert (code, err) == (0, "")
    assert volpatch.verify(here / "begun.zarr", deep=True).ok


def test_what_is_written_is_what_is_believed(outputs):
    for ledger in LEDGERS.values():
        assert bad_field(parts_of(outputs / ledger)) is None
        for log in (outputs / ledger / "records").iterdir():
            for line in log.read_text().splitlines():
                assert is_event(json.loads(line.rpartition("\t")[0])), line


@pytest.mark.parametrize("note", [7, {}, {"region": 0}, {"region": [], "patch": [0]}])
def test_a_note_of_something_else_is_passed_over(note):
    good = {"region": 3, "patch": [0, 1, 2], "start": [0, 4, 8], "stop": [4, 8, 12]}
    assert is_note(good)
    assert not is_note(note)
    assert not is_note({**good, "start": [0]})
