"""Options are declared once: what is derived from the declarations, and what messages call them."""

import inspect
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import zarr

import volpatch
from volpatch import SettingError
from volpatch.cli.options import as_command
from volpatch.core.declared import check_names, completed, part_of, plain, table
from volpatch.core.options import BlendOptions, JobOptions, RetryOptions, RunOptions
from volpatch.storage.plan_file import PlanFile

# A line more in the table is all that a new option needs, to be known everywhere.
MADE_UP = """
import importlib.util, inspect, json, sys
from pathlib import Path

spec = importlib.util.find_spec("volpatch.core.options")
text = Path(spec.origin).read_text()
line = '    reduce: Annotated['
assert text.count(line) == 1
made_up = '''    made_up: Annotated[str, Option(help="Nobody needs pad_mode.", topic="Patches",
        default="a", choices=("a", "b"), shown="a|b", decides="made_up",
        synonyms=("invented",))]
'''
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
exec(compile(text.replace(line, made_up + line), spec.origin, "exec"), module.__dict__)

import volpatch
from volpatch.cli.main import execute
from volpatch.planning import job
from volpatch.storage.plan_file import PlanFile

def said(**options):
    try:
        volpatch.map_patches(abs, __import__("numpy").zeros((8, 8)), 4, **options)
    except volpatch.SettingError as error:
        return str(error)

folder = Path(sys.argv[1])
source, target = folder / "in.zarr", folder / "out.zarr"
options = {"patch": 4, "made_up": "b", "memory_limit": "4GiB"}
volpatch.run("identity", source, target, **options)
again = None
try:
    volpatch.run("identity", source, target, **options | {"made_up": "a"})
except volpatch.TargetError as error:
    again = str(error)
job.save(volpatch.plan(source, target, func="identity", **options), folder / "job.json")
there = PlanFile.load(target / ".volpatch")
print(json.dumps({
    "signature": [str(inspect.signature(f).parameters["made_up"])
                  for f in (volpatch.map_patches, volpatch.plan, volpatch.run)],
    "docstring": "made_up : {'a', 'b'}\\n    Nobody needs pad_mode.  [a]" in volpatch.run.__doc__,
    "checks": [said(made_up="c"), said(made_upp="a"), said(invented="a")],
    "job": [json.loads((folder / "job.json").read_text())["options"]["made_up"],
            there.job["options"]["made_up"]],
    "identity": [there.identity["made_up"], again],
}))
sys.exit(execute(["run", "--help"]))
"""


@pytest.fixture
def stored(tmp_path):
    array = zarr.create_array(tmp_path / "in.zarr", shape=(9, 10, 11), dtype="u1", chunks=(5, 5, 5))
    array[...] = np.arange(990, dtype="u1").reshape(9, 10, 11)
    return tmp_path


def test_an_option_is_declared_in_one_place_and_known_in_all(stored):
    done = subprocess.run(
        [sys.executable, "-c", MADE_UP, str(stored)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    line, help_text = done.stdout.split("\n", 1)
    seen: dict[str, Any] = json.loads(line)
    assert seen["signature"] == ["made_up: str = 'a'"] * 3
    assert seen["docstring"]
    assert seen["checks"] == [
        "made_up must be one of a, b; got 'c'",
        "there is no option 'made_upp'; did you mean 'made_up'?",
        "there is no option 'invented'; it is called 'made_up' here",
    ]
    assert seen["job"] == ["b", "b"]
    assert seen["identity"][0] == "b"
    assert 'made_up was "b" and is now "a"' in seen["identity"][1]
    assert "--made-up [a|b]" in help_text
    assert "Nobody needs --pad-mode. [a]" in " ".join(help_text.split())


def test_what_decides_bytes_is_compared(stored):
    volpatch.run("identity", stored / "in.zarr", stored / "out.zarr", patch=4)
    there = PlanFile.load(stored / "out.zarr" / ".volpatch")
    assert there is not None
    fields = {option.decides for option in table(JobOptions).values()} - {""}
    assert fields <= set(there.identity)
    assert set(there.job["options"]) == set(table(JobOptions))


@pytest.mark.parametrize("function", [volpatch.run, volpatch.plan, volpatch.map_patches])
def test_the_signature_shows_every_option_with_its_default(function):
    parameters = inspect.signature(function).parameters
    assert "options" not in parameters
    for name, option in table(BlendOptions).items():
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[name].default == option.default
        assert f"\n{name} : " in function.__doc__


def test_no_name_stands_for_two_options():
    said = [s for option in table(RunOptions).values() for s in option.synonyms]
    assert len(said) == len(set(said))
    assert not set(said) & set(table(RunOptions))


def test_a_misspelt_option_is_answered_with_the_nearest():
    check_names(["stride", "window", "patch", "shards"], JobOptions)
    with pytest.raises(SettingError, match="no option 'overlapp'; did you mean 'overlap'"):
        check_names(["overlapp"], JobOptions)
    with pytest.raises(SettingError, match="no option 'memory_limt'; did you mean 'memory_limit'"):
        check_names(["memory_limt"], JobOptions)
    with pytest.raises(SettingError, match="no option 'shards'"):
        check_names(["shards"], BlendOptions)
    with pytest.raises(SettingError, match=r"no option 'qqq'; there are batch_size, .*window"):
        check_names(["qqq"], BlendOptions)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        *(("patch_size", "patch"), ("roi_size", "patch"), ("tile_shape", "patch")),
        *(("step", "stride"), ("mode", "window"), ("blend", "window")),
        *(("depth", "reach"), ("halo", "reach"), ("n_workers", "workers")),
    ],
)
def test_words_of_other_libraries_lead_to_ours(stored, ask, theirs, ours):
    with pytest.raises(SettingError, match=f"no option '{theirs}'; it is called '{ours}' here"):
        volpatch.plan(stored / "in.zarr", **{theirs: 4})
    flag = "--" + theirs.replace("_", "-")
    code, _, err = ask("plan", str(stored / "in.zarr"), flag, "4")
    assert code == 2
    assert f"No such option: {flag}. It is called --{ours} here." in err


def test_a_parameter_of_the_function_given_as_an_option_is_shown_its_place(stored, ask):
    words = ["run", str(stored / "in.zarr"), str(stored / "out.zarr"), "--apply", "gaussian"]
    code, _, err = ask(*words, "--sigma", "2")
    assert code == 2
    assert "a parameter of the function, write --param sigma=2" in err
    code, _, err = ask(*words, "--windw", "crop")
    assert code == 2
    assert "--window" in err


def test_what_was_not_said_is_at_its_default_and_numbers_are_pythons_own():
    said = completed({"fill_value": np.float32(2), "stride": (np.int64(3), 4)}, BlendOptions)
    assert said["fill_value"] == 2.0
    assert type(said["fill_value"]) is float
    assert said["stride"] == (3, 4)
    assert (said["reduce"], said["overlap"], said["edge"]) == ("mean", None, "shift")
    assert part_of({**said, "retries": 3}, RetryOptions) == {"retries": 3}
    assert plain([np.bool_(True), "a", None]) == [True, "a", None]


@pytest.mark.parametrize(
    ("python", "command"),
    [
        ("say dtype='uint16' or window=\"crop\"", "say --dtype uint16 or --window crop"),
        ("region=(64, 128) is asked for", "--region 64,128 is asked for"),
        ("region=(64,) is asked for", "--region 64 is asked for"),
        ("pass overwrite=True to replace it", "pass --overwrite to replace it"),
        ("fill_value must be a number", "--fill-value must be a number"),
        ("With pad_mode.", "With --pad-mode."),
        (
            "Choose workers=1 or memory_limit='255MiB'",
            "Choose --workers 1 or --memory-limit 255MiB",
        ),
        ("skip=3 leaves out all", "--skip-below 3 leaves out all"),
        ("pass the same one as mask=", "pass the same one as --mask"),
        # a path, a word of English and a flag stay what they are
        ("/data/patch=3/func_version.zarr", "/data/patch=3/func_version.zarr"),
        ("a patch of a window", "a patch of a window"),
        ("--fill-value 3", "--fill-value 3"),
    ],
)
def test_messages_speak_the_language_of_the_command(python, command):
    assert as_command(python) == command
