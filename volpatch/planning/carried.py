"""What a function carries along, as plain values that can be compared with another process's.

    code      bytecode with all that is written in it, not the lines or the file it stands in
    defaults, closure, partial arguments, attributes and slots, classes: by content, at any depth
    globals   that the code names, and the functions among them, within its own file or `__main__`
    others    functions of other files by name and code, what is installed or built in by name

Nothing is called but ways of pickling, and no address, no `repr`, no order of a set gets in.
What has no content that could be compared (a lock, an open file, a generator) is named, so that
it can be told.
"""

from __future__ import annotations

import copyreg
import dis
import enum
import functools
import hashlib
import math
import os
import sys
import sysconfig
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.core.blending import is_numeric
from volpatch.functions.named import FunctionSpec
from volpatch.storage.plan_file import canonical, digest

Namespace = dict[str, Any]
Words = Any  # JSON values
# a list, a text or a mapping that takes more characters is compared, and shown, by its hash
LONGEST = 200
# levels whose parts keep their names; what lies deeper is compared as one hash
NAMED_LEVELS = 4
DEEPEST = 100

_NOWHERE: Namespace = {}  # code that was found there is followed no further
_MAIN = ("__main__", "__mp_main__")
_ATOMS = (bool, int, float, str, type(None))
_GLOBAL_OPS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
_BUILT_IN = (
    types.BuiltinFunctionType,
    types.MethodWrapperType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    type(np.median),  # a function of numpy in its dress
    np.ufunc,
)
_STANDARD = tuple(
    os.path.join(os.path.realpath(sysconfig.get_path(name)), "")
    for name in ("stdlib", "platstdlib")
)


def carried_by(function: Any, name: str = "function") -> tuple[dict[str, Words], list[str]]:
    """What determines the results of a function, and the parts of it that cannot be compared.

    Parameters
    ----------
    function : callable
    name : that places in it begin with.

    Returns
    -------
    words : JSON values
        `target` names the function; other values mean other results.
    incomparable : list of str
        Such as "function.state.lock (_thread.lock)".

    Examples
    --------
    >>> carried_by(functools.partial(math.pow, 2))[0]
    {'target': 'math:pow', 'arguments': {'0': 2}, 'of': {'target': 'math:pow'}}
    """
    walk = Walk(name)
    words = walk.root(function)
    if walk.codes:
        words["python"] = ".".join(map(str, sys.version_info[:2]))  # others make other code
    return words, walk.incomparable


def named_words(function: Any) -> dict[str, Words]:
    """A function's name, and the parameters it was given by name; nothing of its content."""
    if isinstance(function, FunctionSpec):
        # the folder is another one on another host
        return {**function.to_json(), "target": function.short_target}
    if isinstance(function, functools.partial):
        return named_words(function.func)
    return {"target": _name(function)}


def _name(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{getattr(named, '__module__', None)}:{named.__qualname__}"


@dataclass
class Walk:
    """One way through all that a function carries.

    Attributes
    ----------
    name : of what is walked through.
    incomparable : places, with the kind of what lies there.
    codes : hashes of code that were taken.
    """

    name: str = ""
    incomparable: list[str] = field(default_factory=list)
    codes: int = 0
    _place: list[str] = field(init=False)
    _open: dict[int, int] = field(default_factory=dict)  # ids on the way down -> level
    # what was seen is held, so that no other object can come by its id
    _seen: dict[tuple[int, int], tuple[Any, Words]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._place = [self.name]

    def root(self, function: Any) -> dict[str, Words]:
        """What a function that the user gave is made of; its own file is followed anyhow."""
        try:
            words = self._look(function, None, root=True)
        except Exception:  # of the user's own ways of pickling, or of a proxy
            words = self._cannot(function)
        return words if "target" in words else {"target": _name(function), **words}

    def value(self, value: Any, place: str, among: Namespace | None = None) -> Words:
        """A value that is carried under a name.

        Parameters
        ----------
        place : its name.
        among : the namespace in which code found it; None where it is held by other means.
        """
        if type(value) in _ATOMS:
            return _atom(value)
        key = (id(value), id(among))
        if key in self._seen:
            return self._seen[key][1]
        if id(value) in self._open:
            return {"level": self._open[id(value)]}  # a circle
        self._place.append(place)
        self._open[id(value)] = level = len(self._open)
        try:
            try:
                words = self._cannot(value) if level > DEEPEST else self._look(value, among)
            except Exception:
                words = self._cannot(value)
            if level >= NAMED_LEVELS:
                words = _short(words)
            self._seen[key] = value, words
            return words
        finally:
            del self._open[id(value)]
            self._place.pop()

    def _look(self, value: Any, among: Namespace | None, *, root: bool = False) -> Words:
        exact = _EXACT.get(type(value))
        if exact is not None:
            return exact(self, value)
        if isinstance(value, types.FunctionType):
            return self._function(value, among, root=root)
        if isinstance(value, type):
            return self._class(value, among, root=root)
        if isinstance(value, functools.partial):
            return self._partial(value, root=root)
        for kind, look in _KINDS:
            if isinstance(value, kind):
                return look(self, value)
        return self._object(value, among, root=root)

    def _cannot(self, value: Any) -> Words:
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        place = "".join(self._place[:8])
        self.incomparable.append(f"{place} ({kind})")
        return {"incomparable": kind}

    def _named(self, values: Iterable[tuple[str, Any]], place: str = "") -> dict[str, Words]:
        return {name: self.value(value, f"{place}.{name}") for name, value in values}

    # -- containers ------------------------------------------------------------------------

    def _items(self, values: Iterable[Any]) -> list[Words]:
        return [
            _atom(value) if type(value) in _ATOMS else self.value(value, f"[{number}]")
            for number, value in enumerate(values)
        ]

    def _list(self, value: list[Any]) -> Words:
        return _short(self._items(value))

    def _tuple(self, value: tuple[Any, ...]) -> Words:
        return _short({"tuple": self._items(value)})

    def _set(self, value: set[Any] | frozenset[Any]) -> Words:
        words = [self.value(item, "{}") for item in value]
        return _short({type(value).__name__: sorted(words, key=canonical)})

    def _mapping(self, value: Mapping[Any, Any]) -> Words:
        pairs = [
            [self.value(key, " key"), self.value(item, f"[{_shown(key)}]")]
            for key, item in value.items()
        ]
        return _short({"dict": pairs})

    def _bytes(self, value: bytes | bytearray) -> Words:
        return _short({type(value).__name__: value.hex()})

    def _parts(self, value: Any, *names: str) -> Words:
        parts = ((name, getattr(value, name)) for name in names)
        return {type(value).__name__: self._named(parts)}

    # -- numpy -----------------------------------------------------------------------------

    def array(self, value: NDArray[Any]) -> Words:
        """An array by shape, dtype and a hash of its values."""
        plain = np.asarray(value)  # of a masked array what lies under the mask counts too
        words = [list(plain.shape), str(plain.dtype), self._values(plain)]
        if isinstance(value, np.ma.MaskedArray):
            mask, fill = np.ma.getmaskarray(value), np.asarray(value.fill_value)
            words += [self.array(mask), self.array(fill)]
        elif type(value) not in (np.ndarray, np.memmap):
            words += [
                _name(type(value)),
                self._named(sorted(getattr(value, "__dict__", {}).items())),
            ]
        return {"array": words}

    def _values(self, plain: NDArray[Any]) -> Words:
        if plain.dtype.names is not None:  # what lies between fields is no value
            return digest([self.array(plain[name]) for name in plain.dtype.names])
        if plain.dtype.hasobject or plain.dtype.kind == "T":
            return digest(self._items(plain.ravel().tolist()))
        flat = np.ascontiguousarray(plain).reshape(-1)
        return hashlib.sha256(flat.view(np.uint8).data).hexdigest()

    def _scalar(self, value: np.generic) -> Words:
        if is_numeric(value.dtype):
            return {str(value.dtype): _atom(value.item())}
        return {"scalar": self.array(np.asarray(value))}

    def _tensor(self, value: Any) -> Words:
        """A tensor of torch: its storage would be pickled with more than its values."""
        flat = value.detach().cpu().contiguous().flatten()
        values = self.array(flat.view(sys.modules["torch"].uint8).numpy())
        return {"tensor": [list(value.shape), str(value.dtype), values]}

    # -- code ------------------------------------------------------------------------------

    def _code(self, code: types.CodeType) -> Words:
        """A hash of what code does: the file, the lines and the name are not in it."""
        self.codes += 1
        words = [code.co_code.hex(), code.co_exceptiontable.hex(), code.co_flags]
        words += [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount]
        words += [code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars]
        return digest([*words, [self.value(each, " code") for each in code.co_consts]])

    def _function(
        self, value: types.FunctionType, among: Namespace | None, *, root: bool = False
    ) -> Words:
        code, space = value.__code__, value.__globals__
        words = {"target": _name(value), "code": self._code(code)}
        found: dict[str, Iterable[tuple[str, Any]]] = {
            "defaults": _defaults(value),
            "closure": zip(code.co_freevars, map(_content, value.__closure__ or ()), strict=True),
            "attributes": sorted(vars(value).items()),
        }
        for name, values in found.items():
            words[name] = self._named(values, f".{name}")
        if root or _followed(code.co_filename, space, among):
            words["globals"] = {
                name: self.value(space[name], f".globals.{name}", among=space)
                for name in sorted(set(_global_names(code)))
                if name in space and not _dunder(name)
            }
        return {name: content for name, content in words.items() if content}

    def _method(self, value: types.MethodType) -> Words:
        parts = {"of": value.__func__, "self": value.__self__}
        return {"target": _name(value), **self._named(parts.items())}

    def _partial(self, value: functools.partial[Any], *, root: bool) -> Words:
        given = {**{str(n): arg for n, arg in enumerate(value.args)}, **value.keywords}
        ordered = sorted(given.items())  # words may come in any order
        inner = self._look(value.func, None, root=True) if root else self.value(value.func, ".of")
        return {
            "target": _name(value.func),
            "arguments": self._named(ordered, ".arguments"),
            "of": inner,
        }

    def _built_in(self, value: Any) -> Words:
        """What has no code to be seen: by its name, if it can be found under it."""
        owner = getattr(value, "__self__", None)
        name = getattr(value, "__name__", "")
        places = [getattr(value, "__module__", None), "builtins", "numpy", "scipy.special"]
        for place in places if owner is None or isinstance(owner, types.ModuleType) else []:
            if getattr(sys.modules.get(place or ""), name, None) is value:
                return {"target": f"{place}:{name}"}
        owner = getattr(value, "__objclass__", None) if owner is None else owner
        if owner is None or isinstance(owner, types.ModuleType):
            return self._cannot(value)
        return {"target": f"{type(owner).__qualname__}.{name}", "self": self.value(owner, ".self")}

    def _compiled(self, value: Any) -> Words:
        """What numba or `lru_cache` made of a function."""
        options = getattr(getattr(value, "_dispatcher", value), "targetoptions", None)
        parts = {"of": value.__wrapped__, "options": options}
        return {"target": _name(value.__wrapped__), **self._named(parts.items())}

    # -- classes and objects ---------------------------------------------------------------

    def _class(self, value: type, among: Namespace | None, *, root: bool = False) -> Words:
        words: dict[str, Words] = {"target": _name(value)}
        module = sys.modules.get(value.__module__)
        file = getattr(module, "__file__", None)
        space = vars(module) if module is not None else {}
        if value.__module__ not in _MAIN and not root and _installed(file or "<frozen>"):
            return words
        follows = root or _followed(file or "", space, among)
        words["bases"] = {
            str(number): self.value(base, "", among=space)
            for number, base in enumerate(value.__bases__)
            if base is not object
        }
        inner = (space or None) if follows else _NOWHERE
        words["members"] = {
            name: self.value(member, f".{name}", among=inner)
            for name, member in sorted(vars(value).items())
            if _is_member(name, member) and not isinstance(member, value)
        }
        return {name: content for name, content in words.items() if content}

    def _enum(self, value: enum.Enum) -> Words:
        return {"target": _name(type(value)), "value": self.value(value.value, ".value")}

    def _object(self, value: Any, among: Namespace | None, *, root: bool = False) -> Words:
        """Any other object: by its class, and by what would be pickled of it."""
        kind = type(value)
        if kind.__module__.startswith("numba.") and hasattr(value, "__wrapped__"):
            return self._compiled(value)
        if isinstance(value, getattr(sys.modules.get("torch"), "Tensor", ())):
            return self._tensor(value)
        reduce = copyreg.dispatch_table.get(kind)
        with warnings.catch_warnings(action="ignore"):  # itertools will lose it
            made: Any = value.__reduce_ex__(4) if reduce is None else reduce(value)
        if isinstance(made, str):
            return self._found(value, made)
        function, args, state, items, pairs = (*made, None, None, None)[:5]
        # these are iterators, which come once
        items, pairs = (None if each is None else list(each) for each in (items, pairs))
        words = {"target": _name(kind), "state": self._state(state)}
        words["class"] = self._look(kind, None, root=True) if root else self.value(kind, "", among)
        plainly = function is copyreg.__newobj__  # type: ignore[attr-defined]
        if not plainly or len(args) > 1:
            words["made"] = self._named((("by", function), ("of", tuple(args))))
        if items or pairs:
            words["items"] = self._named((("list", items), ("dict", pairs)))
        return {name: content for name, content in words.items() if content}

    def _found(self, value: Any, name: str) -> Words:
        """What is pickled by its name alone, if that leads to it."""
        place = getattr(value, "__module__", None) or type(value).__module__
        there: Any = sys.modules.get(place)
        for part in name.split("."):
            there = getattr(there, part, None)
        return {"target": f"{place}:{name}"} if there is value else self._cannot(value)

    def _state(self, state: Any) -> Words:
        """Attributes and slots by name; what an object's own way of pickling gives as it is."""
        both = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
        if not all(each is None or type(each) is dict for each in both):
            return self.value(state, ".state")
        held = {**(both[0] or {}), **(both[1] or {})}
        if not all(isinstance(name, str) for name in held):
            return self.value(state, ".state")
        return self._named(sorted(held.items()), ".state")


def _atom(value: Any) -> Words:
    if type(value) is float and not math.isfinite(value):
        return {"float": repr(value)}
    if type(value) is int and value.bit_length() > 64:  # JSON's readers have limits
        return _short({"int": hex(value)})
    return _short(value) if type(value) is str else value


def _short(words: Words) -> Words:
    return words if len(canonical(words)) <= LONGEST else {"sha256": digest(words)}


def _shown(key: Any) -> str:
    return repr(key)[:40] if type(key) in (int, str) else ""


def _dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _defaults(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Default values by the names of their parameters."""
    values = function.__defaults__ or ()
    count = function.__code__.co_argcount
    yield from zip(function.__code__.co_varnames[count - len(values) : count], values, strict=True)
    yield from sorted((function.__kwdefaults__ or {}).items())


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing was assigned yet
        return ...


def _global_names(code: types.CodeType) -> Iterator[str]:
    """Names that code, or code within it, looks up among the globals."""
    yield from (i.argval for i in dis.get_instructions(code) if i.opname in _GLOBAL_OPS)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _global_names(inner)


def _followed(file: str, space: Namespace, among: Namespace | None) -> bool:
    """Whether the globals that some code names belong to it.

    Parameters
    ----------
    file : in which the code stands; none for what was typed or made.
    space : where it looks up globals.
    among : the namespace in which other code found it.
    """
    if space.get("__name__") in _MAIN or not os.path.isfile(file):
        return True
    return not _installed(file) if among is None else space is among


@functools.lru_cache(maxsize=2**12)
def _installed(file: str) -> bool:
    """Whether a file is one of Python's, or of a package that was installed."""
    place = os.path.realpath(file)
    site = {"site-packages", "dist-packages"} & set(Path(place).parts)
    return bool(site) or place.startswith(_STANDARD) or file.startswith("<frozen")


def _is_member(name: str, member: Any) -> bool:
    """Whether an entry of a class is the user's, and no book-keeping of Python's."""
    if isinstance(member, types.MemberDescriptorType | types.GetSetDescriptorType):
        return False
    if _dunder(name):
        wrapped = isinstance(member, classmethod | staticmethod | property)
        return (callable(member) or wrapped) and not name.startswith("__annotate")
    return name != "_abc_impl"


_EXACT: dict[type, Callable[[Walk, Any], Words]] = {
    list: Walk._list,
    tuple: Walk._tuple,
    set: Walk._set,
    frozenset: Walk._set,
    dict: Walk._mapping,
    types.MappingProxyType: Walk._mapping,
    bytes: Walk._bytes,
    bytearray: Walk._bytes,
    complex: lambda walk, value: walk._parts(value, "real", "imag"),
    range: lambda walk, value: walk._parts(value, "start", "stop", "step"),
    slice: lambda walk, value: walk._parts(value, "start", "stop", "step"),
    type(...): lambda walk, value: {"constant": "Ellipsis"},
    type(NotImplemented): lambda walk, value: {"constant": "NotImplemented"},
    types.CodeType: Walk._code,
    types.ModuleType: lambda walk, value: {"module": value.__name__},
    types.MethodType: Walk._method,
    property: lambda walk, value: walk._parts(value, "fget", "fset", "fdel"),
    classmethod: lambda walk, value: walk._parts(value, "__func__"),
    staticmethod: lambda walk, value: walk._parts(value, "__func__"),
    functools.cached_property: lambda walk, value: walk._parts(value, "func"),
    type(functools.lru_cache(abs)): Walk._compiled,
}
_KINDS: tuple[tuple[Any, Callable[[Walk, Any], Words]], ...] = (
    (_BUILT_IN, Walk._built_in),
    (np.ndarray, Walk.array),
    (np.generic, Walk._scalar),
    (enum.Enum, Walk._enum),
)
