"""After a run, or in the midst of it: how far it is, whether it is sound, and what mends it."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import volpatch
from tests.helpers_functions import MISDEEDS
from tests.helpers_runs import SHADE, command, run, tree, volume_with
from tests.helpers_stores import image, store
from volpatch import IncompleteError, RunError, SettingError, TargetError
from volpatch.compute.caller import Caller
from volpatch.functions.named import FunctionSpec
from volpatch.planning import provenance
from volpatch.report import info
from volpatch.storage.layers import unit_key
from volpatch.storage.open import open_source
from volpatch.storage.output import Output
from volpatch.storage.plan_file import PlanFile
from volpatch.storage.records import decode_line
from volpatch.storage.stores.local import AtomicFiles

RAISES = list(MISDEEDS).index("raises")
BAD = "tests.helpers_functions:misbehave"
LAYOUTS = {"chunked": {"chunks": 16}, "sharded": {"chunks": 8, "shards": 16}}
QUICK = {"workers": 1, "durability": "process", "memory_limit": "4GiB"}


@pytest.fixture
def here(here):
    """A folder that functions find too, with a volume on whose region 20 `misbehave` fails."""
    store(here / "in.zarr", volume_with({20: RAISES}), 8)
    return here


@pytest.fixture(scope="module", params=LAYOUTS)
def finished(request, tmp_path_factory):
    """A finished output, as chunks or shards."""
    folder = tmp_path_factory.mktemp(request.param)
    store(folder / "in.zarr", volume_with({}), 8)
    options = {"patch": 6, "overlap": 2, "region": 16, **LAYOUTS[request.param]}
    run(SHADE, folder / "in.zarr", folder / "out.zarr", **options)
    return folder / "out.zarr"


def unfinished(here, **options):
    with pytest.raises(IncompleteError):
        run(BAD, here / "in.zarr", here / "out.zarr", **options)
    return here / "out.zarr"


def keys(target):
    """All that an output consists of, but for its records."""
    return sorted(
        str(p.relative_to(target))
        for p in target.rglob("*")
        if p.is_file() and ".volpatch" not in p.parts
    )


def marks(target):
    """Content and identity of each of these files."""
    found = {}
    for key in keys(target):
        state = (target / key).stat()
        found[key] = (state.st_ino, state.st_mtime_ns, (target / key).read_bytes())
    return found


def records(target):
    """All lines of all records, with their files."""
    folder = Output(target).opened()[1].root / ".volpatch/records"
    return [
        (path, number, decode_line(line))
        for path in sorted(folder.iterdir())
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True))
    ]


# -- each object, each damage ------------------------------------------------------------------


def deleted(path):
    path.unlink()


def emptied(path):
    path.write_bytes(b"")


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


def lengthened(path):
    path.write_bytes(path.read_bytes() + b"\0")


def made_a_folder(path):
    path.unlink()
    path.mkdir()


def made_a_link(path):
    aside = path.with_name(path.name + ".aside")
    path.rename(aside)
    path.symlink_to(aside.name)


DAMAGE = {
    deleted: "it is missing",
    emptied: r"it has 0 bytes instead of \d+",
    truncated: r"it has \d+ bytes instead of \d+",
    lengthened: r"it has \d+ bytes instead of \d+",
    made_a_folder: "it is not a file",
    made_a_link: "it is not a file",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_each_damaged_object_is_named_and_made_again_alone(finished, tmp_path, damage):
    target = shutil.copytree(finished, tmp_path / "copy.zarr")
    assert len(keys(target)) == 8 + 3 * 2 + 3  # objects, coordinates, and what says what they are
    for key in keys(target):
        before = marks(target)
        damage(target / key)
        found = volpatch.verify(target)
        assert list(found.bad) == [key]
        assert re.fullmatch(DAMAGE[damage], found.bad[key])
        volpatch.retry(target, **QUICK)
        if damage is made_a_link:
            (target / f"{key}.aside").unlink()
        after = marks(target)
        assert after[key][2] == before[key][2]
        assert {k: v for k, v in after.items() if k != key} == {
            k: v for k, v in before.items() if k != key
        }
    assert volpatch.verify(target, deep=True).ok
    assert os.listdir(tmp_path) == ["copy.zarr"]


def test_a_folder_with_something_in_it_is_not_replaced(finished, tmp_path):
    target = shutil.copytree(finished, tmp_path / "copy.zarr")
    for key in ("scale0/image/c/0/1/0", "scale0/zarr.json"):
        made_a_folder(target / key)
        (target / key / "notes").write_text("mine")
        says = rf"a folder that is not empty is in the place of the file '.*/{key}'"
        with pytest.raises(RunError, match=says):
            volpatch.retry(target, **QUICK)
        assert (target / key / "notes").read_text() == "mine"
        shutil.rmtree(target / key)
        assert volpatch.retry(target, **QUICK).complete


@pytest.mark.parametrize("seed", range(6))
def test_flipped_bits_are_named_and_mended(finished, tmp_path, seed):
    """25 flips each, of any bit of any object; every fifth is mended by a retry."""
    target = shutil.copytree(finished, tmp_path / "copy.zarr")
    rng = np.random.default_rng(seed)
    names = keys(target)
    for number in range(25):
        key = names[rng.integers(len(names))]
        path = target / key
        whole = path.read_bytes()
        bit = int(rng.integers(8 * len(whole)))
        broken = bytearray(whole)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        assert volpatch.verify(target).bad == {key: "its bytes are not those that were written"}
        if number % 5:
            path.write_bytes(whole)
            continue
        before = marks(target)
        volpatch.retry(target, **QUICK)
        after = marks(target)
        assert after.pop(key)[2] == whole
        del before[key]
        assert after == before
    assert volpatch.verify(target).ok


def test_many_damages_at_once_are_mended_in_one_go(finished, tmp_path, ask):
    target = shutil.copytree(finished, tmp_path / "copy.zarr")
    whole = {key: (target / key).read_bytes() for key in keys(target)}
    for number, key in enumerate(keys(target)):
        list(DAMAGE)[number % 4](target / key)
    code, out, _ = ask("verify", target)
    assert code == 4
    assert f"bad       {len(whole)}" in out
    assert f"and {len(whole) - 10} more (--format json lists them)" in out
    code, out, _ = ask("verify", target, "--format", "json")
    assert code == 4
    assert sorted(json.loads(out)["bad"]) == sorted(whole)
    code, out, err = ask("retry", target, "--progress", "none", "--format", "json")
    assert code == 0, err
    assert json.loads(out)["complete"]
    assert {key: (target / key).read_bytes() for key in keys(target)} == whole
    code, out, _ = ask("verify", target, "--deep")
    assert code == 0
    assert "decoded, size and SHA-256 compared" in out
    assert "bad       none: all is as written" in out


def test_nothing_bad_is_nothing_to_do(finished, ask, monkeypatch):
    before = marks(finished)
    monkeypatch.setattr(AtomicFiles, "put", lambda *args: pytest.fail("something was put"))
    code, out, _ = ask("retry", finished, "--format", "json")
    assert code == 0
    report = json.loads(out)
    assert report["complete"]
    assert report["patches"] == 0
    assert marks(finished) == before
    assert not os.path.lexists(f"{finished}.volpatch")


@pytest.mark.parametrize("how", ["renamed", "copied", "linked"])
def test_an_output_may_be_moved_and_is_mended_where_it_is(finished, tmp_path, how):
    first = shutil.copytree(finished, tmp_path / "first.zarr")
    (tmp_path / "there").mkdir()
    second = tmp_path / "there" / "second name.zarr"
    {
        "renamed": os.rename,
        "copied": shutil.copytree,
        "linked": lambda a, b: b.symlink_to(a),
    }[how](first, second)
    assert volpatch.verify(second, deep=True).ok
    key = next(k for k in keys(second) if "/c/" in k)
    whole = (second / key).read_bytes()
    (second / key).write_bytes(whole[:-3])
    assert list(volpatch.verify(second).bad) == [key]
    assert volpatch.retry(second, **QUICK).complete
    assert (second / key).read_bytes() == whole
    assert volpatch.verify(second).ok
    assert volpatch.status(second).finished
    assert os.listdir(tmp_path / "there") == ["second name.zarr"]


# -- damaged plans and records -----------------------------------------------------------------


def test_a_damaged_plan_is_named_by_each_command(finished, tmp_path, ask):
    target = shutil.copytree(finished, tmp_path / "copy.zarr")
    plan = target / ".volpatch/plan.json"
    whole = plan.read_bytes()
    rng = np.random.default_rng(0)
    for number, bit in enumerate(rng.integers(0, 8 * len(whole), 40).tolist()):
        broken = bytearray(whole)
        broken[bit // 8] ^= 1 << bit % 8
        plan.write_bytes(broken)
        if json_of(broken) == json_of(whole):
            continue  # a blank that became another one
        name = ("status", "verify", "retry", "commit")[number % 4]
        code, out, err = ask(name, target)
        assert (code, out) == (3, ""), (bit, err)
        assert re.match(
            r"volpatch: the plan '.*copy\.zarr/\.volpatch/plan\.json' (is damaged: it no longer|"
            r"cannot be read \(|was made by another version)",
            err,
        )
        assert "start over with --overwrite" in err
    plan.write_bytes(whole)
    assert ask("verify", target)[0] == 0


def json_of(content):
    try:
        return json.loads(bytes(content))
    except ValueError:
        return None


def spoil_line(path, number):
    lines = path.read_bytes().splitlines(keepends=True)
    middle = len(lines[number]) // 2
    lines[number] = lines[number][:middle] + b"#" + lines[number][middle + 1 :]
    path.write_bytes(b"".join(lines))


def test_units_of_a_damaged_record_are_named_and_made_again(finished, tmp_path):
    target = shutil.copytree(finished, tmp_path / "copy.zarr")
    spec = Output(target).opened()[1].spec
    whole = {key: value[2] for key, value in marks(target).items()}
    layers = [(p, n, e) for p, n, e in records(target) if e["kind"] == "layer"]
    for path, number, event in layers[:3]:
        spoil_line(path, number)
        named = {unit_key(spec, n): "it has no record" for n, _, _ in event["units"]}
        assert volpatch.verify(target).bad == named
        assert volpatch.status(target).left == [event["region"]]
        volpatch.retry(target, **QUICK)
        assert volpatch.verify(target).ok
        assert volpatch.status(target).left == []
    assert {key: value[2] for key, value in marks(target).items()} == whole


def test_metadata_without_its_record_is_named_and_told_again(finished, tmp_path):
    target = shutil.copytree(finished, tmp_path / "copy.zarr")
    whole = {key: value[2] for key, value in marks(target).items()}
    (commit,) = ((p, n, e) for p, n, e in records(target) if e["kind"] == "commit")
    spoil_line(*commit[:2])
    (target / "zarr.json").write_bytes(whole["zarr.json"][:-4])
    told = {key for key, _, _ in commit[2]["files"]}
    assert volpatch.verify(target).bad == dict.fromkeys(told, "it has no record")
    volpatch.retry(target, **QUICK)
    assert volpatch.verify(target).ok
    assert {key: value[2] for key, value in marks(target).items()} == whole


def test_a_lost_record_costs_an_unfinished_run_its_units_alone(here, ask):
    target = unfinished(here)
    layers = [(p, n, e) for p, n, e in records(target) if e["kind"] == "layer"]
    path, number, event = layers[5]
    spoil_line(path, number)
    assert volpatch.status(target).left == sorted([20, event["region"]])
    (here / "mended").touch()
    report = run(BAD, here / "in.zarr", target)
    assert report.stats.patches == 2 * 8
    assert volpatch.verify(target).ok


# -- what an output is made of -----------------------------------------------------------------

CODE = """
import numpy as np

def f(patch): return patch * np.float32(2)
"""


@pytest.mark.parametrize("what", ["function", "weights", "input", "gone", "deleted"])
def test_an_output_of_something_else_is_not_mended(here, monkeypatch, what):
    monkeypatch.syspath_prepend(str(here / "nowhere"))
    code = here / "code_for_status.py"
    code.write_text(CODE)
    (here / "weights").write_text("one")
    target = here / "out.zarr"
    spec = FunctionSpec.parse(f"{code}:f")
    run(spec, here / "in.zarr", target, depends_on=[here / "weights"])
    (target / "scale0/image/c/1/1/1").unlink()
    before = marks(target)
    if what == "function":
        code.write_text(CODE.replace("float32(2)", "float32(3)"))
    elif what == "weights":
        (here / "weights").write_text("two")
    elif what == "input":
        os.utime(here / "in.zarr/c/0/0/0", ns=(1, 1))
    elif what == "gone":
        (here / "in.zarr").rename(here / "moved.zarr")
    else:
        code.unlink()
    says = {
        "function": r"function\.code was",
        "weights": r"depends_on\.1 .*weights\) was",
        "input": r"c/0/0/0' of the input changed, and 1 regions of .* \(region 0, say\)",
        "gone": r"no such volume.*in\.zarr",
        "deleted": r"there is no file '.*code_for_status\.py' to import",
    }[what]
    with pytest.raises(volpatch.VolpatchError, match=says) as caught:
        volpatch.retry(target, **QUICK)
    assert caught.value.exit_code == 3
    assert marks(target) == before
    assert not os.path.lexists(f"{target}.volpatch")


def test_an_object_that_comes_out_otherwise_is_left_as_it_is(here, monkeypatch):
    """A library underneath that changed shows in no file that is looked at."""
    run("gaussian", here / "in.zarr", here / "out.zarr")
    path = here / "out.zarr/scale0/image/c/1/1/1"
    path.write_bytes(b"bad")
    before = marks(here / "out.zarr")
    honest, numcodecs = Caller.__call__, provenance.version("numcodecs")
    monkeypatch.setattr(Caller, "__call__", lambda *args: honest(*args) + 1)
    with pytest.raises(RunError, match=r"c/1/1/1 came out with other bytes than it had.*True$"):
        volpatch.retry(here / "out.zarr", **QUICK)
    monkeypatch.setattr(provenance, "_versions", lambda: [("numcodecs", "99"), ("new", "1")])
    with pytest.raises(RunError, match=rf"True. Since then numcodecs {numcodecs} became 99$"):
        volpatch.retry(here / "out.zarr", **QUICK)
    assert marks(here / "out.zarr") == before
    assert not os.path.lexists(here / "out.zarr.volpatch")


def test_functions_given_as_objects_are_to_be_given_again(here):
    def function(patch):
        return patch.astype("float32")

    run(function, here / "in.zarr", here / "out.zarr", finalize=np.abs)
    lost = here / "out.zarr/scale0/image/c/1/1/1"
    before = lost.read_bytes()
    lost.unlink()
    with pytest.raises(SettingError, match=r"a function given as an object, .*:.*retry as func="):
        volpatch.retry(here / "out.zarr")
    with pytest.raises(SettingError, match=r"a finalize given as an object.*as finalize="):
        volpatch.retry(here / "out.zarr", function)
    volpatch.retry(here / "out.zarr", function, finalize=np.abs)
    assert lost.read_bytes() == before


def test_a_mask_given_as_an_array_is_not_in_the_records(here):
    mask = np.ones(volume_with({}).shape, bool)
    run(SHADE, here / "in.zarr", here / "out.zarr", mask=mask, fill_value=0)
    with pytest.raises(SettingError, match=r"a mask or a window that is an object.*volpatch\.run"):
        volpatch.retry(here / "out.zarr")


# -- status ------------------------------------------------------------------------------------


def test_the_status_follows_a_run_from_its_begin_to_its_end(here, ask):
    target = here / "out.zarr"
    seen = []

    def look(patch):
        seen.append(volpatch.status(target) if os.path.lexists(f"{target}.volpatch") else None)
        return patch.astype("float32")

    run(look, here / "in.zarr", target, workers=1)
    under_way = [s for s in seen if s is not None and s.counts["started"]]
    assert [s.counts["done"] for s in under_way] == sorted(s.counts["done"] for s in under_way)
    middle = under_way[100]
    assert not middle.finished
    assert middle.counts["started"] == 1
    assert middle.counts["missing"] == 27 - 1 - middle.counts["done"]
    assert middle.left == list(range(middle.counts["done"], 27))
    assert middle.in_flight[0]["region"] == middle.left[0]
    assert 0 < middle.fraction < 1
    assert middle.patches_per_second > 0
    assert middle.seconds_left > 0
    code, out, _ = ask("status", target)
    assert code == 0
    assert "out.zarr: finished" in out
    assert "27 done of 27: 100.0%" in out
    assert "216 computed, 0 values clipped" in out
    assert ask("status", target, "--format", "ids") == (0, "\n", "")


def test_the_status_of_a_run_that_failed_in_each_form(here, ask):
    target = unfinished(here, part="2/3", workers=1)
    code, out, _ = ask("status", target)
    assert code == 0
    assert "out.zarr: being built" in out
    assert "8 done, 1 failed, 18 missing of 27: 29.6%" in out
    assert (
        "left      regions 0-1,3-4,6-7,9-10,12-13,15-16,18-22" in out or "left      regions" in out
    )
    assert re.search(r"failed    region 20: FunctionError: .*misbehave raised ValueError on", out)
    assert ask("status", target, "--format", "ids")[1] == (
        "0-1,3-4,6-7,9-10,12-13,15-16,18-22,24-25\n"
    )
    facts = json.loads(ask("status", target, "--format", "json")[1])
    assert facts["regions"] == 27
    assert (facts["done"], facts["failed"], facts["missing"], facts["started"]) == (8, 1, 18, 0)
    assert facts["percent"] == pytest.approx(100 * 8 / 27)
    assert facts["left"] == [n for n in range(27) if n % 3 != 2 or n == 20]
    assert facts["failures"][0]["region"] == 20
    assert "too dark" in facts["failures"][0]["traceback"]
    assert facts["in_flight"] == []
    assert len(facts["plan"]) == 64


def test_skipped_and_empty_regions_are_told_apart(here):
    mask = np.ones((24, 24, 24), bool)
    mask[:8] = False
    with pytest.raises(IncompleteError):
        run(BAD, here / "in.zarr", here / "out.zarr", mask=mask, fill_value=0)
    counts = volpatch.status(here / "out.zarr").counts
    assert (counts["done"], counts["skipped"], counts["failed"]) == (17, 9, 1)
    shutil.rmtree(here / "out.zarr.volpatch")
    run(SHADE, here / "in.zarr", here / "out.zarr", edge="drop", patch=20, fill_value=0)
    counts = volpatch.status(here / "out.zarr").counts
    assert (counts["done"], counts["empty"]) == (27, 0)  # one patch of 20, and 0:20 meets them all
    shutil.rmtree(here / "out.zarr")
    run(SHADE, here / "in.zarr", here / "out.zarr", edge="drop", patch=16, fill_value=0)
    counts = volpatch.status(here / "out.zarr").counts
    assert (counts["done"], counts["empty"]) == (8, 19)


@pytest.mark.parametrize("name", ["status", "verify", "retry", "commit"])
def test_where_there_is_no_output_that_is_said(here, ask, name):
    code, out, err = ask(name, here / "none.zarr")
    assert (code, out) == (3, "")
    assert "none.zarr' does not exist, and nothing is being built for it" in err
    code, out, err = ask(name, here / "in.zarr")
    assert (code, out) == (3, "")
    assert "in.zarr' has no records of volpatch's run" in err
    assert os.listdir(here) == ["in.zarr"]


# -- retry of what failed, commit, clean -------------------------------------------------------


def test_retry_computes_what_failed_and_nothing_else(here, ask):
    target = unfinished(here)
    (here / "mended").touch()
    data = here / "out.zarr.volpatch/data"
    before = {k: (data / k).stat().st_mtime_ns for k in keys(data)}
    code, out, err = ask("retry", target, "--progress", "none", "--format", "json")
    assert code == 0, err
    report = json.loads(out)
    assert (report["patches"], report["regions_before"], report["complete"]) == (8, 26, True)
    after = {k: (target / k).stat().st_mtime_ns for k in before}
    assert after == before
    assert volpatch.verify(target, deep=True).ok
    assert xr.open_zarr(target / "scale0", consolidated=False)["image"].shape == (24, 24, 24)


def test_retry_where_nothing_failed_says_what_is_missing(here, ask):
    run(SHADE, here / "in.zarr", here / "out.zarr", part="1/3")
    before = tree(here)
    code, out, err = ask("retry", here / "out.zarr")
    assert (code, out) == (4, "")
    assert "nothing of" in err
    assert re.search(r"but 18 of 27 regions were never computed \(0,2-3,5", err)
    assert tree(here) == before


def test_retry_mends_what_went_bad_before_the_end(here, ask):
    target = unfinished(here)
    bad = here / "out.zarr.volpatch/data/scale0/image/c/0/1/2"
    bad.write_bytes(b"bad")
    code, out, _ = ask("verify", target)
    assert code == 4
    assert "scale0/image/c/0/1/2: it has 3 bytes" in out
    flipped = here / "out.zarr.volpatch/data/scale0/image/c/1/1/1"
    content = bytearray(flipped.read_bytes())
    content[-9] ^= 1
    flipped.write_bytes(content)
    assert len(volpatch.verify(target).bad) == 2
    (here / "mended").touch()
    report = volpatch.retry(target, **QUICK)
    assert (report.stats.patches, report.complete) == (3 * 8, True)
    assert volpatch.verify(target, deep=True).ok
    run(SHADE, here / "in.zarr", here / "wanted.zarr")
    np.testing.assert_array_equal(image(target), image(here / "wanted.zarr"))


def all_but_published(here, monkeypatch):
    """An output whose regions are all done, of a run that died before it was published."""
    with monkeypatch.context() as patching:
        patching.setattr(Output, "publish", lambda *args: _stop())
        with pytest.raises(KeyboardInterrupt):
            run(SHADE, here / "in.zarr", here / "out.zarr")
    return here / "out.zarr"


def _stop():
    raise KeyboardInterrupt


def test_commit_publishes_what_is_done_and_may_be_repeated(here, ask, monkeypatch):
    target = all_but_published(here, monkeypatch)
    assert not target.exists()
    assert ask("commit", target) == (0, f"complete {target}\n", "")
    before = tree(here)
    assert ask("commit", target) == (0, f"complete already {target}\n", "")
    assert tree(here) == before
    assert volpatch.verify(target, deep=True).ok
    assert sorted(os.listdir(here)) == ["in.zarr", "out.zarr"]


def test_commit_lists_what_is_missing_and_changes_nothing(here, ask):
    target = unfinished(here, part="2/3")
    before = tree(here)
    code, out, err = ask("commit", target)
    assert (code, out) == (4, "")
    assert "19 of 27 regions" in err
    assert "are not done: 0-1,3-4,6-7,9-10,12-13,15-16,18-22,24-25. Run again" in err
    assert tree(here) == before


def test_commit_counts_objects_not_words(here, monkeypatch):
    target = all_but_published(here, monkeypatch)
    (here / "out.zarr.volpatch/data/scale0/image/c/2/2/2").unlink()
    with pytest.raises(RunError, match=r"1 of 27 regions of .* are not done \(26\)"):
        volpatch.commit(target)
    assert not target.exists()


@pytest.mark.parametrize("apart", ["threads", "processes"])
def test_two_may_commit_at_once(here, monkeypatch, apart):
    target = all_but_published(here, monkeypatch)
    told = []

    def call():
        if apart == "threads":
            told.append(volpatch.commit(target))
        else:
            done = command(here, "commit", target)
            told.append(
                done.stdout.strip().removeprefix("complete ").removeprefix("already ")
                or done.stderr
            )

    threads = [threading.Thread(target=call) for _ in range(3 if apart == "threads" else 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(told) == {str(target)}
    assert len(told) == len(threads)
    assert volpatch.verify(target, deep=True).ok
    assert sorted(os.listdir(here)) == ["in.zarr", "out.zarr"]


def test_clean_removes_what_is_unfinished_and_keeps_what_is_finished(here, ask):
    run("tests.helpers_functions:half", here / "in.zarr", here / "out.zarr")
    before = tree(here)
    assert ask("clean", here / "out.zarr") == (0, "nothing was left to remove\n", "")
    assert tree(here) == before
    with pytest.raises(IncompleteError):
        run(BAD, here / "in.zarr", here / "out.zarr", overwrite=True)
    code, out, _ = ask("clean", here / "out.zarr")
    assert (code, out) == (0, f"removed {here / 'out.zarr'}.volpatch\n")
    assert tree(here) == before
    assert ask("clean", here / "none.zarr") == (0, "nothing was left to remove\n", "")


@pytest.mark.parametrize("where", ["notes", "data.txt"])
def test_clean_refuses_a_work_folder_with_something_else_in_it(here, ask, where):
    target = unfinished(here)
    (here / "out.zarr.volpatch" / where).write_text("mine")
    before = tree(here)
    code, out, err = ask("clean", target)
    assert (code, out) == (3, "")
    assert f"it holds '{where}'" in err
    assert tree(here) == before


def test_clean_refuses_what_is_not_of_volpatch(here, ask):
    (here / "out.zarr.volpatch").mkdir()
    (here / "out.zarr.volpatch/volpatch.json").write_text('{"mine": 1}')
    before = tree(here)
    code, _, err = ask("clean", here / "out.zarr")
    assert code == 3
    assert "has no volpatch.json of ours" in err
    assert tree(here) == before


def test_an_output_that_was_put_there_meanwhile_is_kept(here):
    """Whoever finishes later finds the place taken, and says so."""
    target = here / "out.zarr"

    def take_the_place(plan):
        target.mkdir()
        (target / "notes").write_text("mine")

    with pytest.raises(TargetError, match=r"out\.zarr' exists"):
        run(SHADE, here / "in.zarr", target, announce=take_the_place)
    assert Path(target / "notes").read_text() == "mine"
    shutil.rmtree(target)
    assert volpatch.commit(target) == str(target)
    assert volpatch.verify(target).ok


def test_more_units_than_there_is_memory_to_count_are_not_checked(finished, monkeypatch):
    units = sum(key.startswith("scale0/image/c/") for key in keys(finished))
    monkeypatch.setattr("volpatch.core.resources.memory_granted", lambda: 2 * units - 1)
    says = f"has {units} write units.* two bytes each, more than the {2 * units - 1} that are free"
    with pytest.raises(RunError, match=says):
        volpatch.verify(finished)


def openings(monkeypatch, call):
    """How often a call opens the ledger of an output, that is, reads a plan."""
    found = []
    load = PlanFile.load

    def counted(folder):
        plan = load(folder)
        found.extend([] if plan is None else [folder])
        return plan

    with monkeypatch.context() as patched:
        patched.setattr(PlanFile, "load", counted)
        with suppress(IncompleteError):
            call()
    return len(found)


def test_a_command_opens_the_ledger_once(here, monkeypatch):
    count = functools.partial(openings, monkeypatch)
    target, source = here / "out.zarr", here / "in.zarr"
    assert count(lambda: run(BAD, source, target)) == 1
    assert count(lambda: volpatch.status(target)) == 1
    assert count(lambda: volpatch.verify(target)) == 1
    assert count(lambda: volpatch.commit(target)) == 1
    assert count(lambda: volpatch.retry(target)) == 1
    (here / "mended").touch()
    assert count(lambda: run(BAD, source, target, part="0/2")) == 1  # one that goes on
    assert count(lambda: volpatch.retry(target)) == 1
    assert target.exists()
    assert count(lambda: run(BAD, source, target)) == 1  # all is done
    assert count(lambda: volpatch.commit(target)) == 1
    (target / "scale0/image/c/0/0/0").unlink()
    assert count(lambda: volpatch.retry(target)) == 1
    assert count(lambda: info.command_of(target)) == 1
    assert count(lambda: info.facts_of(open_source(target))) == 1
    assert count(lambda: volpatch.clean(target)) == 0
    assert count(lambda: volpatch.to_zarr(np.ones((4, 4, 4)), here / "written.zarr")) == 1
