"""Functions named by text: strict about what may be named, and imported where they run.

A spec is three JSON values, so only they travel to worker processes and into plans; each worker
imports the function itself. Naming a file or an installed module is the user's explicit word; the
current folder is never searched, as files that happen to lie there are not.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import json
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from volpatch.core.errors import SettingError, blamed, interrupts, said
from volpatch.core.options import BlendOptions, Sizes
from volpatch.core.words import asks_for_patches
from volpatch.functions.operation import Operation, did_you_mean
from volpatch.functions.registry import OPERATIONS, get

_NAME = r"[A-Za-z_]\w*"
_OPERATION = re.compile(_NAME, re.ASCII)
_MODULE = re.compile(rf"(?P<place>{_NAME}(\.{_NAME})*):(?P<name>{_NAME})", re.ASCII)
_FILE = re.compile(rf"(?P<place>[^\0\r\n]*[^\0\r\n/]\.py):(?P<name>{_NAME})", re.ASCII)
_DUNDER = re.compile(r"__\w*__", re.ASCII)
_FORMS = (
    "write a ready-made operation ({}), package.module:function or path/to/file.py:function"
).format(", ".join(OPERATIONS))

_import_lock = threading.RLock()
_loaded: dict[str, tuple[str, int, int]] = {}  # module name -> path, mtime, size of its file


@dataclass(frozen=True, slots=True)
class FunctionSpec:
    """A function by name, with its parameters; picklable whatever the function is.

    Parameters
    ----------
    target : str
        `gaussian`, `package.module:function`, or `/path/to/file.py:function` (absolute).
    parameters : tuple of (str, object)
        Keyword arguments, JSON values.
    factory : bool
        The named callable is called once, with the parameters, and returns the function.

    Examples
    --------
    >>> FunctionSpec.parse("gaussian", {"sigma": 2}).load()
    functools.partial(<function gaussian at ...>, sigma=2)
    """

    target: str
    parameters: tuple[tuple[str, object], ...] = ()
    factory: bool = False

    def __post_init__(self) -> None:
        _, place, _ = _split(self.target)
        if place.endswith(".py") and not os.path.isabs(place):
            raise SettingError(f"{self.target!r} must name its file by an absolute path")
        if self.factory and self.operation is not None:
            raise SettingError(f"{self.target} is a ready-made operation, no factory: drop one")
        seen: set[str] = set()
        for name, value in self.parameters:
            _check_parameter(name, value, seen)
            seen.add(name)

    @classmethod
    def parse(
        cls, text: str, params: Mapping[str, object] | None = None, *, factory: bool = False
    ) -> Self:
        """Read what a user wrote; nothing is imported yet.

        Parameters
        ----------
        text : str
            One of the three forms; a file's path may be relative here.
        params : mapping of str to object, optional
            Keyword arguments, JSON values.
        factory : bool
            Whether the named callable makes the function.

        Returns
        -------
        FunctionSpec
            With the file's path made absolute.
        """
        kind, place, name = _split(text)
        if kind == "file":
            text = f"{os.path.abspath(Path(place).expanduser())}:{name}"
        return cls(text, tuple((params or {}).items()), factory)

    @property
    def operation(self) -> Operation | None:
        """The ready-made operation, or None for a user's function."""
        return get(self.target) if ":" not in self.target else None

    def check(self) -> None:
        """Import the function and check its parameters; a factory is not called."""
        self._bound()

    def load(self) -> Callable[..., Any]:
        """Import the function and bind its parameters; call the factory where it is one.

        Returns
        -------
        callable
            Of one patch, or of one batch.
        """
        bound = self._bound()
        if not self.factory:
            return bound
        try:
            made = bound()
        except BaseException as error:
            raise blamed(error, f"the factory {self.target}") from error
        _check_kind(f"what the factory {self.target} returned", made, factory=False)
        function: Callable[..., Any] = made
        return function

    @property
    def short_target(self) -> str:
        """The target without the folder of a file."""
        kind, place, name = _split(self.target)
        return f"{os.path.basename(place)}:{name}" if kind == "file" else self.target

    def named(self) -> Any:
        """What the name stands for: imported, with no parameters bound and nothing called."""
        if self.operation is not None:
            return self.operation.function
        kind, place, name = _split(self.target)
        module = _load_file(Path(place)) if kind == "file" else _import_module(place)
        return _attribute(module, place, name)

    def to_json(self) -> dict[str, object]:
        """Return the spec as JSON values."""
        return {
            "target": self.target,
            "parameters": dict(self.parameters),
            "factory": self.factory,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Self:
        """Read what `to_json` gave; anything else is a SettingError."""
        target, factory = data.get("target"), data.get("factory")
        parameters = data.get("parameters")
        sound = isinstance(target, str) and isinstance(factory, bool)
        if not sound or not isinstance(parameters, dict) or len(data) != 3:
            raise SettingError(
                "a function's record must have a target (text), parameters (an object) and "
                f"factory (true or false), and nothing else; got {dict(data)!r}"
            )
        return cls(str(target), tuple(parameters.items()), bool(factory))

    def _bound(self) -> Callable[..., Any]:
        parameters = dict(self.parameters)
        if self.operation is not None:
            return self.operation.bind(parameters)
        found = self.named()
        _check_kind(self.target, found, factory=self.factory)
        _check_signature(self.target, found, parameters, takes_patch=not self.factory)
        return functools.partial(found, **parameters) if parameters else found


Func = Callable[..., Any] | FunctionSpec  # as it is kept: an object, or a name
Function = Func | str  # as it is given


def by_name(function: Function | None, kwargs: Mapping[str, object] | None = None) -> Func | None:
    """What a user gave for a function, a text being the name of one, with its parameters bound."""
    if isinstance(function, str):
        return FunctionSpec.parse(function, kwargs)
    if not kwargs:
        return function
    if function is None or isinstance(function, FunctionSpec):
        raise SettingError("kwargs= are parameters of a function, and none is given beside them")
    return functools.partial(function, **kwargs)


def loaded(function: Func | None) -> Callable[..., Any]:
    """The function itself; one that has only a name is imported, or made by its factory."""
    if function is None:
        raise SettingError("there is no function to apply")
    return function.load() if isinstance(function, FunctionSpec) else function


def operation_of(function: Func | None) -> Operation | None:
    """The ready-made operation that a function is; None of a user's own."""
    return function.operation if isinstance(function, FunctionSpec) else None


def settle(
    asked: BlendOptions, function: Func | None, patch: Sizes | None, source: Any, ndim: int
) -> None:
    """Fill in what a ready-made operation settles, where nothing else was asked for.

    That is the dtype of the output, since operations give intensities; and the reach, unless
    there is no bound to it, or something was asked for that belongs to patches.

    Parameters
    ----------
    source : dtype of the volume.
    ndim : number of patched axes.
    """
    if not isinstance(function, FunctionSpec) or (operation := function.operation) is None:
        return
    if asked["dtype"] is None:
        asked["dtype"] = operation.output(source)
    of_patches = asks_for_patches(patch, asked) is not None or asked["batch_size"] is not None
    if asked["reach"] is None and not of_patches:
        asked["reach"] = operation.reach_of(ndim, dict(function.parameters))


def parse_params(words: Sequence[str]) -> dict[str, object]:
    """Read `NAME=VALUE` words; a value is JSON, and what does not look like it is text.

    Parameters
    ----------
    words : sequence of str
        For instance `sigma=1.5`, `sigma=[0.5,2,2]`, `mode=nearest`, `weights=model.pt`.

    Returns
    -------
    dict of str to object
        In the order given.

    Examples
    --------
    >>> parse_params(["sigma=[1, 2]", "mode=nearest"])
    {'sigma': [1, 2], 'mode': 'nearest'}
    """
    params: dict[str, object] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise SettingError(f"parameter {word!r} must be written NAME=VALUE")
        value = _json_value(name, text)
        _check_parameter(name, value, params)
        params[name] = value
    return params


def _json_value(name: str, text: str) -> object:
    if text in ("True", "False", "None", "NaN", "Infinity", "-Infinity"):
        spelled = {"True": "true", "False": "false", "None": "null"}.get(text, "a finite number")
        raise SettingError(f"parameter {name}={text} is not JSON; write {spelled}")
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        if text and not _LIKE_JSON.match(text):
            return text
        raise SettingError(
            f"parameter {name}={text} looks like a JSON value and is none ({error}); write a "
            f"number, a list such as [1,2,2], true, false, null, or text in quotes: '{name}=\"…\"'"
        ) from None


# what begins like a list, an object or a text, or has nothing in it but digits and signs
_LIKE_JSON = re.compile(r"""\s*([\[{"']|[-+\d.,eE_\s]+$)""")


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("an object names a key twice")
    return made


def _check_parameter(name: object, value: object, seen: Mapping[str, object] | set[str]) -> None:
    if not isinstance(name, str) or not _OPERATION.fullmatch(name) or _DUNDER.fullmatch(name):
        raise SettingError(f"{name!r} is no name for a parameter; write NAME=VALUE")
    if name in seen:
        raise SettingError(f"parameter {name!r} is given twice; give it once")
    if not _is_json(value):
        raise SettingError(
            f"parameter {name}={value!r} must be a JSON value: a finite number, text, true, "
            "false, null, or a list or object of these"
        )


def _is_json(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, (list, tuple)):
        return all(_is_json(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    return value is None or isinstance(value, (bool, int, str))


def _split(text: str) -> tuple[str, str, str]:
    """Return (form, place, name): ("operation", "", name), ("module" or "file", place, name)."""
    if ":" not in text and _OPERATION.fullmatch(text):
        return "operation", "", get(text).name
    for kind, pattern in (("file", _FILE), ("module", _MODULE)):
        match = pattern.fullmatch(text)
        if match is None:
            continue
        place, name = match["place"], match["name"]
        parts = [Path(place).stem] if kind == "file" else place.split(".")
        if any(_DUNDER.fullmatch(part) for part in (*parts, name)):
            raise SettingError(f"{text!r} names a dunder, which is refused; {_FORMS}")
        return kind, place, name
    hint = f"; after {text!r} say which function: {text}:function" if text.endswith(".py") else ""
    raise SettingError(f"{text!r} does not name a function{hint}; {_FORMS}")


@contextmanager
def _without_current_folder() -> Iterator[None]:
    """Keep the current folder from being searched.

    `''` stands for it in interactive Python, and `python -m` puts it first. A later entry (an
    editable install, PYTHONPATH) was put there on purpose and stays.
    """
    before = list(sys.path)
    kept = [entry for entry in before if entry not in ("", ".")]
    if kept and kept[0] == before[0] and os.path.realpath(kept[0]) == os.path.realpath("."):
        del kept[0]
    sys.path[:] = kept
    try:
        yield
    finally:
        added = [entry for entry in sys.path if entry not in kept]
        sys.path[:] = before + added


def _import_module(name: str) -> ModuleType:
    try:
        with _import_lock, _without_current_folder():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _import_failed(name, error) from error
        raise SettingError(
            f"there is no module {error.name!r} to import; the current folder is not searched: "
            "install the package, or pass path/to/file.py:function"
        ) from error
    except BaseException as error:
        if interrupts(error):
            raise
        raise _import_failed(name, error) from error


def _load_file(path: Path) -> ModuleType:
    """Import a file under its stem, so that what it defines pickles by name; load it once."""
    try:
        stat = path.stat()
    except OSError as error:
        raise SettingError(f"there is no file {str(path)!r} to import ({error.strerror})") from None
    if not path.is_file():
        raise SettingError(f"{str(path)!r} is not a file; pass path/to/file.py:function")
    key = (str(path), stat.st_mtime_ns, stat.st_size)
    with _import_lock:
        if _loaded.get(path.stem) == key and path.stem in sys.modules:
            return sys.modules[path.stem]
        _refuse_taken_name(path)
        if str(path.parent) not in sys.path:  # last, so that nothing of Python's is hidden
            sys.path.append(str(path.parent))
        module = _execute(path)
        _loaded[path.stem] = key
        return module


def _execute(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:  # pragma: no cover - a .py file has a loader
        raise SettingError(f"{str(path)!r} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    previous = sys.modules.get(path.stem)
    sys.modules[path.stem] = module
    try:
        with _without_current_folder():
            spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[path.stem]
        if previous is not None:
            sys.modules[path.stem] = previous
        if interrupts(error):
            raise
        raise _import_failed(str(path), error) from error
    return module


def _refuse_taken_name(path: Path) -> None:
    if path.stem in _loaded:
        return
    with _without_current_folder():
        try:
            spec = importlib.util.find_spec(path.stem)
        except (ImportError, ValueError):
            spec = None
    origin = spec.origin if spec is not None else None
    if spec is not None and not (origin and os.path.realpath(origin) == os.path.realpath(path)):
        raise SettingError(
            f"the file {str(path)!r} would hide the module {path.stem!r} ({origin or 'built in'}); "
            "rename the file"
        )


def _import_failed(name: str, error: BaseException) -> SettingError:
    shown = f"{type(error).__name__}: {said(error)}"
    return SettingError(f"importing {name!r} raised {shown}; repair it, then try again")


def _attribute(module: ModuleType, place: str, name: str) -> Any:
    try:
        return getattr(module, name)
    except AttributeError:
        public = {key: None for key, value in vars(module).items() if callable(value)}
        raise SettingError(
            f"{place!r} has no function {name!r}{did_you_mean(name, public)}"
        ) from None


def _check_kind(label: str, found: Any, *, factory: bool) -> None:
    if not callable(found):
        raise SettingError(f"{label} is not callable: it is {type(found).__name__}")
    if inspect.isclass(found):
        if not factory:
            raise SettingError(
                f"{label} is a class: calling it would make an object, not a result; with "
                "--factory it is called once and the object is the function"
            )
        return
    for part in (found, getattr(found, "__call__", None)):  # noqa: B004 - the method is inspected
        if inspect.iscoroutinefunction(part):
            raise SettingError(f"{label} is a coroutine function (async def); pass a plain one")
        if inspect.isgeneratorfunction(part) or inspect.isasyncgenfunction(part):
            raise SettingError(f"{label} is a generator function (yield); return an array instead")


def _check_signature(
    target: str, found: Callable[..., Any], given: Mapping[str, object], *, takes_patch: bool
) -> None:
    try:
        parameters = list(inspect.signature(found).parameters.values())
    except (ValueError, TypeError):  # some compiled functions tell nothing
        return
    if takes_patch:
        parameters = _after_patch(target, parameters, given)
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for name in given:
        if name not in named and not open_ended:
            raise SettingError(
                f"{target} has no parameter {name!r}{did_you_mean(name, named)}; "
                f"it takes {', '.join(named) or 'none'}"
            )
    for parameter in parameters:
        variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if variable or parameter.default is not parameter.empty or parameter.name in given:
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise SettingError(
                f"{target} needs {parameter.name!r}, which cannot be given by name; "
                "wrap it in a function of the patch alone"
            )
        raise SettingError(
            f"{target} needs a value for {parameter.name!r}: say --param {parameter.name}=…"
        )


def _after_patch(
    target: str, parameters: list[inspect.Parameter], given: Mapping[str, object]
) -> list[inspect.Parameter]:
    """Return the parameters left when the patch has taken the first place."""
    if parameters and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL:
        return parameters
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if not parameters or parameters[0].kind not in kinds:
        raise SettingError(f"{target} must take the patch as its first argument, and takes none")
    if parameters[0].name in given:
        raise SettingError(
            f"{target}: {parameters[0].name!r} is the patch itself and cannot be set"
        )
    return parameters[1:]
