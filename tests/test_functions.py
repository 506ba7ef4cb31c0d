"""Functions named by text: what may be named, where it is looked for, what each mistake says."""

import json
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

import volpatch
from volpatch.core.errors import FunctionError, SettingError
from volpatch.functions import named as functions
from volpatch.functions.named import FunctionSpec, parse_params

USER_FILE = """
import numpy as np
from helper_beside import OFFSET

class Network:
    def __init__(self, depth=1): self.depth = depth
    def __call__(self, patch): return patch + self.depth

def shift(patch, by, *, sign=1): return patch + sign * by + OFFSET
def positional(patch, by, /): return patch
def nothing(): return 0
def open_ended(*args, **more): return more
def build(depth): return Network(depth)
def broken_build(): raise ValueError("no weights")
def build_nothing(): return None
async def later(patch): return patch
def many(patch): yield patch
class Waits:
    async def __call__(self, patch): return patch
waits = Waits()
NUMBER = 3
"""


@pytest.fixture
def clean_imports(monkeypatch):
    """Forget what a test imported and put on sys.path."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(functions, "_loaded", {})
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def user_file(tmp_path, clean_imports):
    folder = tmp_path / "my functions"
    folder.mkdir()
    (folder / "helper_beside.py").write_text("OFFSET = 100\n")
    file = folder / "user_file.py"
    file.write_text(USER_FILE)
    return file


def message(call):
    with pytest.raises(SettingError) as caught:
        call()
    return str(caught.value)


def loading(text, params=None, **more):
    return message(lambda: FunctionSpec.parse(text, params, **more).load())


def test_an_operation_is_loaded_with_its_parameters():
    function = FunctionSpec.parse("median", {"size": 1}).load()
    patch = np.arange(27).reshape(3, 3, 3)
    np.testing.assert_array_equal(function(patch), patch)
    assert FunctionSpec.parse("median").operation.output("uint8") == np.uint8


def test_an_installed_module_is_imported():
    assert FunctionSpec.parse("json.encoder:encode_basestring").load()("a") == '"a"'
    assert FunctionSpec.parse("numpy:square").load()(3) == 9  # a compiled function
    assert FunctionSpec.parse("numpy:square").operation is None


def test_a_file_is_loaded_by_place_and_sees_its_neighbours(user_file):
    spec = FunctionSpec.parse(f"{user_file}:shift", {"by": 2, "sign": -1})
    assert spec.load()(0) == 98
    assert pickle.loads(pickle.dumps(spec.load()))(0) == 98


def test_a_files_path_is_made_absolute_when_it_is_read(user_file, monkeypatch):
    monkeypatch.chdir(user_file.parent)
    spec = FunctionSpec.parse("user_file.py:shift", {"by": 2})
    assert spec.target == f"{user_file}:shift"
    monkeypatch.chdir("/")
    assert spec.load()(0) == 102
    assert "absolute path" in message(lambda: FunctionSpec("user_file.py:shift"))


def test_a_file_runs_once_until_it_changes(user_file):
    spec = FunctionSpec.parse(f"{user_file}:build", {"depth": 3}, factory=True)
    assert type(spec.load()) is type(spec.load())
    user_file.write_text("def build(depth): return abs\n# changed")
    assert spec.load() is abs


def test_files_of_one_name_in_two_folders_are_kept_apart(tmp_path, clean_imports):
    specs = []
    for value in (1, 2):
        file = tmp_path / str(value) / "twin_file.py"
        file.parent.mkdir()
        file.write_text(f"def f(patch): return {value}")
        specs.append(FunctionSpec.parse(f"{file}:f"))
    assert [spec.load()(0) for spec in (*specs, *specs)] == [1, 2, 1, 2]


def load_and_call(spec, value):
    return spec.load()(value)


def test_only_the_spec_crosses_to_a_worker(user_file):
    spec = FunctionSpec.parse(f"{user_file}:build", {"depth": 5}, factory=True)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(load_and_call, spec, 1).result() == 6
    assert "user_file" not in sys.modules


def test_a_factory_and_a_class_are_called_once(user_file):
    assert FunctionSpec.parse(f"{user_file}:build", {"depth": 2}, factory=True).load()(1) == 3
    assert FunctionSpec.parse(f"{user_file}:Network", factory=True).load()(1) == 2


def test_checking_calls_no_factory(user_file):
    spec = FunctionSpec.parse(f"{user_file}:broken_build", factory=True)
    spec.check()
    with pytest.raises(FunctionError, match="raised ValueError: no weights"):
        spec.load()


@pytest.mark.parametrize(
    ("name", "params", "factory", "expected"),
    [
        ("shfit", {}, False, "has no function 'shfit': did you mean 'shift'?"),
        ("NUMBER", {}, False, "is not callable: it is int"),
        ("Network", {}, False, "is a class"),
        ("Network", {}, False, "--factory"),
        ("later", {}, False, "is a coroutine function"),
        ("waits", {}, False, "is a coroutine function"),
        ("many", {}, False, "is a generator function"),
        ("shift", {}, False, "needs a value for 'by': say --param by=…"),
        ("shift", {"by": 1, "sing": 1}, False, "no parameter 'sing': did you mean 'sign'?"),
        ("shift", {"by": 1, "other": 1}, False, "it takes by, sign"),
        ("shift", {"patch": 1, "by": 1}, False, "'patch' is the patch itself"),
        ("positional", {}, False, "needs 'by', which cannot be given by name"),
        ("nothing", {}, False, "must take the patch as its first argument"),
        ("build", {}, True, "needs a value for 'depth': say --param depth=…"),
        ("build", {"depht": 1}, True, "no parameter 'depht': did you mean 'depth'?"),
        ("build_nothing", {}, True, "what the factory"),
    ],
)
def test_each_mistake_about_the_function_has_its_message(
    user_file, name, params, factory, expected
):
    assert expected in loading(f"{user_file}:{name}", params, factory=factory)


def test_an_open_ended_function_takes_every_parameter(user_file):
    assert FunctionSpec.parse(f"{user_file}:open_ended", {"a": 1}).load()(0) == {"a": 1}


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "a:", ":b", "a:b:c", "a.:b", ".a:b", "a..b:c", "a b:c", "a:b.c", "a:b()", "a;b"),
        *("a:b\n", "1a:b", "a-b:c", "os:system('x')", "a/b:c", ".py:f", "x.py:f.g", "x\n.py:f"),
    ],
)
def test_what_names_no_function_gets_the_forms(text):
    shown = message(lambda: FunctionSpec.parse(text))
    assert "does not name a function" in shown
    assert "package.module:function or path/to/file.py:function" in shown


@pytest.mark.parametrize("text", ["os:__import__", "a.__b__:c", "x.py:__init__", "__init__.py:f"])
def test_dunders_are_refused(text):
    assert "dunder" in message(lambda: FunctionSpec.parse(text))


def test_a_file_without_a_function_says_how_to_name_one():
    assert "say which function: x.py:function" in message(lambda: FunctionSpec.parse("x.py"))


def test_an_unknown_operation_gets_the_known_ones():
    shown = message(lambda: FunctionSpec.parse("medain"))
    assert "did you mean 'median'?" in shown
    assert "identity, threshold, normalize, gaussian" in shown


def test_an_operation_is_no_factory():
    assert "no factory" in message(lambda: FunctionSpec.parse("median", factory=True))


@given(st.text(max_size=30))
def test_any_text_is_a_spec_or_a_clear_error(text):
    try:
        spec = FunctionSpec.parse(text)
    except SettingError:
        return
    assert FunctionSpec.from_json(spec.to_json()) == spec


def test_a_missing_module_is_named():
    shown = loading("no_such_module_here.part:f")
    assert "no module 'no_such_module_here'" in shown
    assert "the current folder is not searched" in shown
    assert "path/to/file.py:function" in shown
    assert "no module 'json.no_such_part'" in loading("json.no_such_part:f")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import missing_dependency_x", "ModuleNotFoundError: No module named 'missing_dep"),
        ("1/0", "raised ZeroDivisionError: division by zero"),
        ("def f(", "raised SyntaxError"),
        ("raise SystemExit(3)", "raised SystemExit: 3"),
        ("raise AssertionError", "raised AssertionError: no message;"),
    ],
)
@pytest.mark.parametrize("form", ["file", "module"])
def test_what_an_import_raises_is_shown_and_chained(
    tmp_path, clean_imports, source, expected, form
):
    file = tmp_path / "raises_on_import.py"
    file.write_text(source)
    sys.path.append(str(tmp_path))
    text = f"{file}:f" if form == "file" else "raises_on_import:f"
    with pytest.raises(SettingError) as caught:
        FunctionSpec.parse(text).load()
    assert expected in str(caught.value)
    assert caught.value.__cause__ is not None
    assert "raises_on_import" not in sys.modules


def test_a_keyboard_interrupt_passes_through(tmp_path, clean_imports):
    file = tmp_path / "interrupts.py"
    file.write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        FunctionSpec.parse(f"{file}:f").load()


@pytest.mark.parametrize("start", [["-c"], ["-m", "loader"]])
def test_the_current_folder_is_not_searched(tmp_path, start):
    (tmp_path / "lies_here.py").write_text("def f(patch): return patch")
    code = """
import sys
from volpatch.functions.named import FunctionSpec
before = list(sys.path)
try:
    FunctionSpec.parse("lies_here:f").load()
except Exception as error:
    print(error)
assert sys.path == before
"""
    (tmp_path / "loader.py").write_text(code)
    command = [sys.executable, *start, *([code] if start == ["-c"] else [])]
    shown = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=True)
    assert "there is no module 'lies_here'" in shown.stdout


def test_a_folder_put_on_the_path_on_purpose_is_searched(tmp_path, clean_imports, monkeypatch):
    (tmp_path / "on_purpose.py").write_text("def f(patch): return patch")
    monkeypatch.chdir(tmp_path)
    sys.path.append(str(tmp_path))  # as an editable install does
    assert FunctionSpec.parse("on_purpose:f").load()(4) == 4


def test_missing_files_are_named(tmp_path):
    assert "there is no file" in loading(f"{tmp_path}/absent.py:f")
    (tmp_path / "folder.py").mkdir()
    assert "is not a file" in loading(f"{tmp_path}/folder.py:f")


def test_a_file_may_not_hide_a_module(tmp_path, clean_imports):
    for name in ("json", "colorsys"):
        (tmp_path / f"{name}.py").write_text("def f(patch): return patch")
        shown = loading(f"{tmp_path / name}.py:f")
        assert f"would hide the module {name!r}" in shown
        assert "rename the file" in shown


def test_a_files_folder_comes_last_on_the_path(user_file):
    FunctionSpec.parse(f"{user_file}:shift", {"by": 1}).load()
    assert sys.path[-1] == str(user_file.parent)


def test_parameters_are_json_and_bare_words_are_text():
    words = ["a=1.5", 'b="x y"', "c=nearest", "d=[1,2]", "e=true", "f=null", 'g={"h":1}', "i=2a.pt"]
    assert parse_params(words) == {
        "a": 1.5,
        "b": "x y",
        "c": "nearest",
        "d": [1, 2],
        "e": True,
        "f": None,
        "g": {"h": 1},
        "i": "2a.pt",
    }
    assert parse_params(['text="a=b"']) == {"text": "a=b"}
    assert parse_params([]) == {}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sigma"], "'sigma' must be written NAME=VALUE"),
        (["=1"], "no name for a parameter"),
        (["a-b=1"], "no name for a parameter"),
        (["__class__=1"], "no name for a parameter"),
        (["a=1", "a=2"], "'a' is given twice"),
        (["a="], "looks like a JSON value and is none"),
        (["a=1,2"], "looks like a JSON value and is none"),
        (["a=[1,2"], "text in quotes: 'a=\"…\"'"),
        (["a=True"], "write true"),
        (["a=None"], "write null"),
        (["a=NaN"], "write a finite number"),
        (["a=1e999"], "must be a JSON value: a finite number"),
        (["a=[NaN]"], "must be a JSON value: a finite number"),
        (['a={"b":1,"b":2}'], "names a key twice"),
        (["a=" + "[" * 100_000], "looks like a JSON value"),
    ],
)
def test_bad_parameters_say_what_to_write(words, expected):
    assert expected in message(lambda: parse_params(words))


def test_a_spec_cannot_hold_what_json_cannot():
    assert "must be a JSON value" in message(lambda: FunctionSpec("median", (("size", object()),)))
    twice = (("size", 3), ("size", 5))
    assert "given twice" in message(lambda: FunctionSpec("median", twice))


def test_a_spec_survives_json_and_pickle():
    spec = FunctionSpec.parse("/a folder/x.py:f", {"a": [1, None], "b": "c"}, factory=True)
    assert FunctionSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"target": 1, "parameters": {}, "factory": False},
        {"target": "median", "parameters": [], "factory": False},
        {"target": "median", "parameters": {}, "factory": 0},
        {"target": "median", "parameters": {}, "factory": False, "more": 1},
    ],
)
def test_a_malformed_record_is_refused(data):
    assert "record must have a target" in message(lambda: FunctionSpec.from_json(data))


# -- kwargs ------------------------------------------------------------------------------------


def test_parameters_go_beside_a_function_or_its_name(tmp_path):
    noise = np.random.default_rng(0).integers(0, 4096, (12, 13, 14)).astype(np.uint16)
    wide = ndimage.median_filter(noise, 5)
    named = volpatch.map_patches("median", noise, kwargs={"size": 5})
    np.testing.assert_array_equal(named, wide)
    called = volpatch.map_patches(ndimage.median_filter, noise, reach=2, kwargs={"size": 5})
    np.testing.assert_array_equal(called, wide)
    zarr.save_array(tmp_path / "in.zarr", noise)
    for number, function in enumerate(("median", ndimage.median_filter)):
        target = tmp_path / f"out{number}.zarr"
        told = {"reach": 2, "kwargs": {"size": 5}}
        volpatch.run(function, tmp_path / "in.zarr", target, dtype="uint16", **told)
        np.testing.assert_array_equal(volpatch.open_volume(target)[...], wide)
        assert volpatch.run(function, tmp_path / "in.zarr", target, dtype="uint16", **told).already
        told["kwargs"] = {"size": 3}
        with pytest.raises(volpatch.TargetError, match="made by another job"):
            volpatch.run(function, tmp_path / "in.zarr", target, dtype="uint16", **told)
    plan = volpatch.plan(tmp_path / "in.zarr", func="gaussian", kwargs={"sigma": 2})
    assert plan.options["reach"] == (8, 8, 8)


def test_parameters_that_cannot_be_are_refused():
    noise = np.zeros((8, 8), np.uint16)
    with pytest.raises(SettingError, match="gaussian has no parameter 'sgima'"):
        volpatch.map_patches("gaussian", noise, kwargs={"sgima": 2})
    with pytest.raises(SettingError, match="kwargs= are parameters of a function, and none is"):
        volpatch.map_patches(FunctionSpec.parse("gaussian"), noise, kwargs={"sigma": 2})
