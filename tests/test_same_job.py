"""Whether a run is the one that was begun: the function with all that it carries along."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest

import volpatch
from tests.helpers_stores import image, store
from volpatch import IncompleteError, SettingError, TargetError
from volpatch.cli import main as cli
from volpatch.planning.carried import carried_by

OPTIONS = {"patch": 4, "stride": 2, "chunks": 4, "region": 4, "workers": 1}
DARK = 10_000
ANOTHER = "holds a run of another plan: "


@pytest.fixture
def here(tmp_path):
    """A folder with a volume; a function fails on the last of its nine regions."""
    volume = np.arange(144, dtype="uint16").reshape(12, 12)
    volume[10, 10] = DARK
    store(tmp_path / "in.zarr", volume, 4)
    return tmp_path


def run(here, function, **options):
    return volpatch.run(function, here / "in.zarr", here / "out.zarr", **{**OPTIONS, **options})


def begin(here, function, **options):
    with pytest.raises(IncompleteError):
        run(here, function, **options)


def times(patch, *factors):
    if patch.max() >= DARK:
        raise ValueError("too dark")
    return patch * np.float32(np.sum([np.sum(each) for each in factors]))


# -- other functions ---------------------------------------------------------------------------


def by_closure(k):
    return lambda p: times(p, k)


def by_default(k):
    def f(p, k=k):
        return times(p, k)

    return f


def by_keyword_default(k):
    def f(p, *, k=k):
        return times(p, k)

    return f


def by_inner_code(k):
    source = f"def f(p):\n    def inner(q): return q * {k}\n    return inner(times(p, 1))"
    return made(source, times=times)


def by_partial(k):
    return functools.partial(by_words, words={"a": ({"b": [np.full(5000, k)]},)})


def by_words(p, words, inner=sum):
    return times(p, words["a"][0]["b"][0])


def by_nested_partial(k):
    return functools.partial(by_partial(0), inner=functools.partial(max, k))


class Held:
    def __init__(self, k):
        self.k = k

    def __call__(self, p):
        return times(p, self.k)

    def called(self, p):
        return times(p, self.k)


class Slotted(Held):
    __slots__ = ("_Slotted__own",)

    def __init__(self, k):
        self.__own = k

    def __call__(self, p):
        return times(p, self.__own)


def by_middle_of_array(k):
    values = np.zeros(5000)
    values[2500] = k
    return Held([[values], [values]])


def by_class_attribute(k):
    class Base:
        factor = k

        def helper(self, p):
            return times(p, self.factor)

    class Derived(Base):
        def __call__(self, p):
            return self.helper(p)

    return Derived()


def by_other_method(k):
    return made(
        f"class C:\n    def helper(self): return {k}\n"
        "    def __call__(self, p): return times(p, self.helper())\nf = C()",
        times=times,
    )


def by_property(k):
    class WithProperty:
        @property
        def k(self):
            return k

        @staticmethod
        def one():
            return k

        def __call__(self, p):
            return times(p, self.k)

    return WithProperty()


def by_class_method(k):
    class WithClassMethod:
        factor = k

        @classmethod
        def call(cls, p):
            return times(p, cls.factor)

    return WithClassMethod.call


def by_cache(k):
    @functools.lru_cache
    def factor():
        return k

    return lambda p: times(p, factor())


def by_numba(k):
    import numba

    @numba.njit
    def factor():
        return k

    return lambda p: times(p, factor.py_func())


def by_helper(k):
    """A helper that was edited in a notebook, where there is no file."""
    return made(
        "def deep(): return K\ndef helper(p): return times(p, deep())\ndef f(p): return helper(p)",
        times=times,
        K=k,
    )


def made(source, **names):
    """What a cell of a notebook defines as f."""
    space = {"__name__": "__main__", **names}
    exec(compile(source, "/tmp/ipykernel_1/2.py", "exec"), space)
    return space["f"]


KINDS = {
    "closure": (by_closure, r"function\.closure\.k was 2 and is now 3"),
    "default": (by_default, r"function\.defaults\.k was 2 and is now 3"),
    "keyword default": (by_keyword_default, r"function\.defaults\.k was 2 and is now 3"),
    "inner code": (by_inner_code, r"function\.code was \"\w{12}\.\.\.\" and is now"),
    "partial": (by_partial, r"function\.arguments\.words\.dict was"),
    "nested partial": (by_nested_partial, r"function\.arguments\.inner\.arguments\.0 was 2 and"),
    "attribute": (Held, r"function\.state\.k was 2 and is now 3"),
    "slot": (Slotted, r"function\.state\._Slotted__own was 2 and is now 3"),
    "array": (by_middle_of_array, r"function\.state\.k.* was .* and is now"),
    "class attribute": (by_class_attribute, r"bases\.0\.members\.factor was 2 and is now 3"),
    "other method": (by_other_method, r"function\.class\.members\.helper\.code was"),
    "property": (by_property, r"members\.k\.property\.fget\.closure\.k was 2 and is now 3"),
    "bound method": (lambda k: Held(k).called, r"function\.self\.state\.k was 2 and is now 3"),
    "class method": (by_class_method, r"function\.self\.members\.factor was 2 and is now 3"),
    "cached helper": (by_cache, r"closure\.factor\.of\.closure\.k was 2 and is now 3"),
    "compiled helper": (by_numba, r"closure\.factor\.of\.closure\.k was 2 and is now 3"),
    "global of a helper": (by_helper, r"globals\.helper\.globals\.deep\.globals\.K was 2 and is"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_with_the_same_function_and_no_other(here, kind):
    make, says = KINDS[kind]
    begin(here, make(2))
    with pytest.raises(TargetError, match=f"{ANOTHER}.*{says}") as caught:
        run(here, make(3))
    assert caught.value.exit_code == 3
    begin(here, make(2))


def test_of_another_function_altogether_the_name_is_told_and_not_all_it_is_made_of(here):
    begin(here, by_class_attribute(1))
    with pytest.raises(TargetError) as caught:
        run(here, by_other_method(1))
    told = str(caught.value).partition(ANOTHER)[2].partition(". Ask")[0].split("; ")
    assert [field.split(" was ")[0] for field in told] == ["function.target"]


@pytest.mark.parametrize("name", ["finalize", "skip", "setup"])
def test_functions_beside_the_function_are_compared_alike(here, name):
    def go(k):
        if name == "setup":
            return run(here, None, setup=lambda: by_closure(k))
        what = {
            "finalize": {"finalize": lambda block: block + np.float32(k)},
            "skip": {"skip": lambda patch: patch.max() < k, "fill_value": 0},
        }
        return run(here, by_closure(1), **what[name])

    with pytest.raises(IncompleteError):
        go(2)
    with pytest.raises(TargetError, match=rf"{ANOTHER}{name}\.closure\.k was 2 and is now 3\."):
        go(3)
    with pytest.raises(IncompleteError):
        go(2)


def test_parts_that_are_given_other_functions_are_refused(here):
    gain = Held(2)
    assert not run(here, by_closure(2), part="0/3", finalize=gain.called).complete
    with pytest.raises(TargetError, match=rf"{ANOTHER}function\.closure\.k was 2 and is now 7\."):
        run(here, by_closure(7), part="1/3", finalize=gain.called)
    gain.k = 7
    with pytest.raises(TargetError, match=rf"{ANOTHER}finalize\.self\.state\.k was 2 and is now 7"):
        run(here, by_closure(2), part="1/3", finalize=gain.called)


SCRIPT = """
import sys
import volpatch

K = float(sys.argv[1])
WORDS = {"a", "b", "c", "d"}

def f(patch):
    if patch.max() >= 10_000:
        raise ValueError("too dark")
    return patch * helper()

def helper():
    return K * len(WORDS)

try:
    volpatch.run(f, "in.zarr", "out.zarr", patch=4, stride=2, chunks=4, region=4, workers=1)
except volpatch.VolpatchError as error:
    print(type(error).__name__, error)
"""


def test_a_script_is_another_job_with_other_arguments_and_the_same_one_when_it_moves(here):
    def go(script, k, seed):
        file = here / script
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        call = [sys.executable, file, k]
        return subprocess.run(
            call, cwd=here, env=environment, capture_output=True, text=True, check=True
        ).stdout

    (here / "one.py").write_text(SCRIPT)
    assert go("one.py", "1", "1").startswith("IncompleteError 1 of 9 regions failed")
    assert "function.globals.helper.globals.K was 1.0 and is now 7.0. Ask" in go("one.py", "7", "2")
    # the same lines further down, in another file, after a remark
    (here / "two.py").write_text(
        "# moved\n\n" + SCRIPT.replace("def helper", "# a remark\ndef helper")
    )
    assert go("two.py", "1", "3").startswith("IncompleteError 1 of 9 regions failed")


FILE = """
import functools
def times(patch, k):
    if patch.max() >= 10_000:
        raise ValueError("too dark")
    return patch * float(k)
f = functools.partial(times, k={k})
"""


def test_a_named_file_is_compared_by_what_it_does_and_not_by_its_place(here, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path[:])

    def go(folder, text):
        (here / folder).mkdir(exist_ok=True)
        (here / folder / "code_that_moves.py").write_text(text)
        return run(here, f"{here}/{folder}/code_that_moves.py:f")

    with pytest.raises(IncompleteError):
        go("a", FILE.format(k=2))
    with pytest.raises(TargetError, match=rf"{ANOTHER}function\.arguments\.k was 2 and is now 3\."):
        go("a", FILE.format(k=3))
    with pytest.raises(TargetError, match=rf"{ANOTHER}function\.of\.code was \"\w{{12}}\.\.\.\" a"):
        go("b", FILE.format(k=2).replace("10_000", "20_000"))
    with pytest.raises(IncompleteError):
        go("b", "# moved\n" * 7 + FILE.format(k=2))
    (here / "a" / "code_that_moves.py").write_text(FILE.format(k=2).replace(">= 10_000", "> 1e6"))
    with pytest.raises(TargetError, match=r"function\.of\.code was"):
        volpatch.retry(here / "out.zarr")


class Counts:
    """Counts its own calls, and notes some of what it saw."""

    shared: list[float] = []  # noqa: RUF012 - that is what is tested

    def __init__(self, gain):
        self.gain, self.calls = gain, 0
        self.scratch = np.zeros(3)

    def __call__(self, patch):
        self.calls += 1
        self.scratch[0] = patch.flat[0]
        self.shared.append(float(patch.flat[0]))
        return times(patch, self.gain)


@pytest.mark.parametrize("same", [True, False], ids=["same object", "fresh object"])
def test_what_calls_change_in_a_function_makes_no_other_job(here, monkeypatch, same):
    monkeypatch.setattr(Counts, "shared", [])
    counts = Counts(2)
    assert not run(here, counts, part="1/2").complete
    assert counts.calls > 2
    for _ in range(2):
        if not same:
            monkeypatch.setattr(Counts, "shared", [])
            counts = Counts(2)
        begin(here, counts)
    counts.gain = 3
    with pytest.raises(TargetError, match=r"function\.state\.gain was 2 and is now 3"):
        run(here, counts)


# -- what cannot be compared -------------------------------------------------------------------


class Locked:
    def __init__(self, fails=False):
        self.lock, self.fails = threading.Lock(), fails

    def __call__(self, patch):
        with self.lock:
            return times(patch, 2) if self.fails else patch.astype("float32")


PLACE = r"function\.state\.lock \(_thread\.lock\)"


def test_a_run_that_could_not_be_gone_on_with_says_so_before_it_starts(here):
    plan = volpatch.plan(here / "in.zarr", func=Locked(), **OPTIONS)
    assert plan.incomparable == ("function.state.lock (_thread.lock)",)
    assert plan.to_json()["incomparable"] == list(plan.incomparable)
    says = "resume    not after a kill: function.state.lock (_thread.lock) cannot be compared;\n"
    assert f"{says}          func_version=TEXT, which replaces the comparison" in plan.explain()
    shown = []
    with pytest.warns(
        UserWarning, match=f"after a kill .* could not be .*{PLACE}.*func_version=TEXT"
    ) as w:
        assert volpatch.run(Locked(), here / "in.zarr", here / "out.zarr", patch=4).complete
    assert w[0].filename == __file__  # that is where it was called
    run(here, Locked(), overwrite=True, announce=shown.append)  # whoever looks at the plan is told
    assert says in repr(shown[0])


def test_a_run_that_cannot_be_compared_is_not_gone_on_with(here):
    with pytest.warns(UserWarning, match="could not be gone on with"):
        begin(here, Locked(fails=True))
    with pytest.raises(
        TargetError,
        match=rf"nobody can tell to be the same: {PLACE} cannot .* func_version=TEXT from",
    ):
        run(here, Locked(fails=True))
    with pytest.raises(
        SettingError, match=rf"parts must be seen .* of the same .*{PLACE}.*func_version"
    ):
        run(here, Locked(), part="0/2")
    with pytest.raises(TargetError, match="nobody can tell"):
        volpatch.retry(here / "out.zarr", Locked(fails=True))


def test_a_version_replaces_the_comparison_of_functions(here):
    begin(here, Locked(fails=True), func_version="1")
    with pytest.raises(TargetError, match=r"version was \"1\" and is now \"2\""):
        run(here, Locked(), func_version="2")
    report = run(here, Locked(), func_version="1")
    assert report.complete
    assert report.regions_before == 8


def test_a_finished_output_is_mended_also_by_what_cannot_be_compared(here):
    with pytest.warns(UserWarning, match="could not be gone on with"):
        run(here, Locked())
    before = image(here / "out.zarr").copy()
    (chunk,) = (here / "out.zarr").rglob("c/1/1")
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-3])
    with pytest.warns(UserWarning, match="could not be gone on with"):
        volpatch.retry(here / "out.zarr", Locked())
    assert chunk.read_bytes() == whole
    np.testing.assert_array_equal(image(here / "out.zarr"), before)


def test_the_command_says_it_too(here, monkeypatch, capfd):
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.chdir(here)
    text = (
        "print('loaded')\nimport threading\nlock = threading.Lock()\n"
        "def f(p):\n    with lock: return p * 1.0\n"
    )
    (here / "code_with_lock.py").write_text(text)
    words = ("in.zarr", "out.zarr", "--apply", "code_with_lock.py:f", "--patch", "4")
    says = "resume    not after a kill: function.globals.lock (_thread.lock) cannot be compared"
    for command in ("plan", "run"):
        assert cli.execute([command, *words]) == 0
        out, err = capfd.readouterr()
        assert says in out
        assert "loaded" not in out
        assert "Warning" not in err
    # of a module that is on another machine nothing is known
    assert cli.execute(["plan", "in.zarr", "--apply", "not_here.models:f", "--patch", "4"]) == 0
    assert "resume" not in capfd.readouterr().out


# -- files and numbers -------------------------------------------------------------------------


def test_files_that_a_function_reads_are_compared_by_content_and_order(here):
    paths = [here / folder / "w.pt" for folder in ("a", "b", "c")]
    for path, text in zip(paths, ("one", "two", "one"), strict=True):
        path.parent.mkdir()
        path.write_text(text)
    a, b, c = paths
    begin(here, by_closure(1), depends_on=[a, b])
    begin(here, by_closure(1), depends_on=(str(c), b))  # the same, in another place
    with pytest.raises(
        TargetError, match=r"depends_on\.1 \(.*b/w\.pt\) was \"\w{12}\.\.\.\" and is"
    ):
        run(here, by_closure(1), depends_on=[b, a])
    with pytest.raises(TargetError, match=r"depends_on\.2 was \"\w{12}\.\.\.\" and is now nothing"):
        run(here, by_closure(1), depends_on=[a])
    a.write_text("other")
    with pytest.raises(TargetError, match=rf"depends_on\.1 \({a}\) was .* and is now [^;]*$"):
        run(here, by_closure(1), depends_on=[a, b])
    unread = r"a', which the result depends on, cannot be read: it is a folder"
    with pytest.raises(SettingError, match=unread):
        run(here, by_closure(1), depends_on=[a.parent])
    for bare in (a, str(a)):
        with pytest.raises(SettingError, match=rf"list of paths, also of one; write \['{a}'\]"):
            run(here, by_closure(1), depends_on=bare)
    with pytest.raises(SettingError, match="depends_on must be paths of files; got 3"):
        run(here, by_closure(1), depends_on=3)


@pytest.mark.parametrize(
    ("name", "value", "alike", "other"),
    [
        ("fill_value", np.float32(2), 2, np.float32(3)),
        ("pad_value", np.int64(2), 2.0, 3),
        ("skip", np.float32(2), 2.0, np.float32(3)),
        ("out_channels", np.int64(1), 1, None),
        ("chunks", np.int64(4), [np.int16(4), 4], 2),
        ("shards", (np.int64(8), 8), 8, None),
        ("overlap", np.float32(0.5), 0.5, np.float32(0.25)),
        ("func_version", np.int64(1), 1, np.int64(2)),
    ],
)
def test_numbers_of_numpy_are_numbers(here, name, value, alike, other):
    more = {"stride": None, "region": None, "edge": "pad", "pad_mode": "constant", "fill_value": 0}

    def f(patch):
        made = times(patch, 1)
        return made[None] if name == "out_channels" else made

    begin(here, f, **{**more, name: value})
    begin(here, f, **{**more, name: alike})
    if other is not None:
        with pytest.raises(TargetError, match=ANOTHER):
            run(here, f, **{**more, name: other})


# -- values, one by one ------------------------------------------------------------------------


def words(value):
    """What is compared of a function that holds a value."""
    found, incomparable = carried_by(lambda p: value)
    return json.dumps(found), incomparable


def arrays(dtype):
    values = np.zeros(3, dtype)
    values[1] = 1
    return values


class Plain:
    pass


class Chosen:
    """Says itself what counts of it."""

    def __init__(self, k):
        self.k, self.lock = k, threading.Lock()

    def __getstate__(self):
        return {"k": self.k}


class Stubborn:
    def __reduce_ex__(self, protocol):
        raise RuntimeError("no")


class Proxy:
    """Stands for what is not there yet, as lazy proxies do."""

    @property
    def __class__(self):
        raise RuntimeError("not yet")


DIFFERENT = [
    *(1, 1.0, True, "1", None, 0.0, -0.0, float("nan"), 2**70, 1j, b"1", bytearray(b"1"), ...),
    *([1], (1,), {1}, frozenset({1}), {1: 1}, {"1": 1}, range(1), slice(1), [[1]], [1, 1]),
    *({1: 2, 3: 4}, {3: 4, 1: 2}, [1, 2], [2, 1], "a" * 300, "a" * 301, list(range(2000))),
    *(arrays(t) for t in ("u1", "i1", "f4", ">f4", "f8", "?", "O", "M8[s]", "c8", "U1")),
    *(np.float32(1), np.float64(1), np.int64(1), np.datetime64("2020-01-01"), np.dtype("f4")),
    *(arrays("f4").reshape(3, 1), np.zeros(3, "i1,f8"), np.ma.masked_equal(arrays("u1"), 1)),
    *(np.ma.masked_equal(arrays("u1"), 0), arrays("f4").view(np.recarray), np.zeros(0)),
    *(np.random.default_rng(1), np.random.default_rng(2), np.random.RandomState(1)),
    *(np.sin, np.cos, np.median, np.float32, len, abs, [1].append, [2].append, os, sys, int),
    *(Path("a"), Path("b"), os.path.join, os.path.split, Plain, Plain(), Held(1), Held(2)),
    *(types.SimpleNamespace(a=1), types.SimpleNamespace(a=2), Chosen(1), Chosen(2), Held),
    *(functools.partial(max, 1), functools.partial(max, 2), functools.partial(min, 1)),
]


def test_values_that_differ_are_told_apart_and_all_are_comparable():
    found = [words(value) for value in DIFFERENT]
    assert [kind for _, incomparable in found for kind in incomparable] == []
    assert len({text for text, _ in found}) == len(DIFFERENT)
    assert max(len(text) for text, _ in found) < 3_000


def test_values_that_are_alike_are_not_told_apart():
    column = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    assert words(column) == words(np.arange(12.0).reshape(3, 4))
    assert words(column[:, ::2]) == words(column[:, ::2].copy())
    assert words({"b", "a", "c"}) == words({"c", "b", "a"})
    one, other = Plain(), Plain()
    one.a, one.b, other.b, other.a = 1, 2, 2, 1
    assert words(one) == words(other)
    shared = [1, 2]
    assert words([shared, shared]) == words([[1, 2], [1, 2]])
    assert words(by_closure(1)) == words(by_closure(1))
    assert words(np.random.default_rng(1)) == words(np.random.default_rng(1))


def test_tensors_are_compared_by_their_values(monkeypatch):
    class Tensor:
        """As much of torch's as is asked for."""

        def __init__(self, values):
            self.values, self.lock = np.asarray(values), threading.Lock()
            self.shape, self.dtype = self.values.shape, f"torch.{self.values.dtype}"

        def detach(self):
            return self

        cpu = contiguous = detach

        def flatten(self):
            return Tensor(self.values.ravel())

        def view(self, dtype):
            return Tensor(self.values.view(dtype))

        def numpy(self):
            return self.values

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(Tensor=Tensor, uint8="u1"))
    kinds = [np.float32(1), [1.0], [2.0], [[1.0]], [1], [True]]
    found = [words(Tensor(values)) for values in kinds]
    assert [incomparable for _, incomparable in found] == [[]] * len(kinds)
    assert len({text for text, _ in found}) == len(kinds)
    assert words(Tensor([1.0])) == words(Tensor([1.0]))
    monkeypatch.delattr(Tensor, "view")  # one of a kind that has no values of its own
    assert words(Tensor([1.0]))[1][0].endswith("Tensor)")


def test_circles_and_depths_come_to_an_end():
    ring, friend = Plain(), Plain()
    ring.friend, friend.friend, ring.itself = friend, ring, [ring]
    assert words(ring)[1] == []
    assert words(ring)[0] == words(ring)[0]
    many = []
    for _ in range(40):
        many = [many, many]  # 2 to the 40 lists, seen one by one
    assert words(many)[1] == []
    deep = []
    for _ in range(5_000):
        deep = [deep]
    assert words(deep)[1] == ["function.closure.value[0][0][0][0][0][0] (list)"]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (threading.Lock(), "_thread.lock"),
        ((i for i in ()), "generator"),
        (sys.__stdout__, "_io.TextIOWrapper"),
        (np.frompyfunc(abs, 1, 1), "numpy.ufunc"),
        (threading.local(), "_thread._local"),
        (Stubborn(), "tests.test_same_job.Stubborn"),
    ],
)
def test_what_has_no_content_is_named(value, kind):
    assert words(value)[1] == [f"function.closure.value ({kind})"]
    assert words({"a": [1, value]})[1] == [f"function.closure.value['a'][1] ({kind})"]


def test_what_does_not_even_tell_its_class_is_named():
    assert words(Proxy())[1] == ["function.closure.value (tests.test_same_job.Proxy)"]


def test_only_what_the_code_names_is_looked_at():
    text = "def f(p): return p.unused\nunused = lock\ndef g(): return helper\n"
    space = {"lock": threading.Lock(), "__name__": "elsewhere"}
    exec(compile(text, __file__, "exec"), space)
    assert carried_by(space["f"])[1] == []
    assert "globals" not in carried_by(space["f"])[0]
    # a helper of another file by its name and code, with what it holds but not what it names
    mine = {"there": space["f"], "p": 1, "__name__": "here"}
    space["f"].__globals__["unused"] = 1
    exec(compile("def f(p): return there(p)", __file__, "exec"), mine)
    there = carried_by(mine["f"])[0]["globals"]["there"]
    assert sorted(there) == ["code", "target"]
