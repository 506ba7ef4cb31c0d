"""What is derived from an option that is declared: its checks, its place in Python's help.

    class Failing(TypedDict, total=False):
        retries: Annotated[int, Option(help="Tries of a region ...", topic="Failures", ...)]

`volpatch.core.options` declares them all. NumPy is not imported at once, so that the help of
the command stays quick.
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast, get_args

from volpatch.core.errors import SettingError

_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What is to be known of one option besides its name and its type.

    Attributes
    ----------
    help : a sentence, for the help of the command and the docstrings.
    topic : under which the help lists it.
    default : what it is where nothing is said.
    without : in words, where the default does not tell.
    choices : all that it may be.
    shown : how a value is written on the command line; "" for a flag, None where it has no
        place there.
    flag : its name there, where it is another one.
    many : whether it may be given several times there.
    decides : the field of a job's identity in which it is compared, its own name where it is
        compared as it is; "" where it changes no byte of the output.
    synonyms : what others call it.
    """

    help: str
    topic: str
    default: Any = None
    without: str = ""
    choices: tuple[str, ...] = ()
    shown: str | None = None
    flag: str = ""
    many: bool = False
    decides: str = ""
    synonyms: tuple[str, ...] = ()

    @property
    def absence(self) -> str:
        """What it is where nothing is said, in words; "" where that goes without saying."""
        told = self.default is not None and self.default is not False
        return self.without or (str(self.default) if told else "")

    def command_name(self, name: str) -> str:
        """What the command calls it."""
        return self.flag or "--" + name.replace("_", "-")


def table(known: type) -> Mapping[str, Option]:
    """The options that a class declares, by name.

    >>> from volpatch.core.options import Failing
    >>> table(Failing)["retries"].default
    0
    """
    return _table(known)


@functools.cache
def _table(known: Any) -> Mapping[str, Option]:
    return {
        name: each.__metadata__[0]
        for name, each in known.__annotations__.items()
        if hasattr(each, "__metadata__")
    }


def completed(given: Mapping[str, Any], known: type[_T]) -> _T:
    """Options with all that was not said at its default, in plain numbers.

    Raises
    ------
    SettingError
        For one that there is not, or that cannot be what it is.
    """
    check_names(given, known)
    whole = {name: given.get(name, option.default) for name, option in table(known).items()}
    check_choices(whole, known)
    return cast(_T, plain(whole))


def part_of(options: Mapping[str, Any], known: type[_T]) -> _T:
    """Those of some options that a class declares."""
    return cast(_T, {name: options[name] for name in table(known) if name in options})


def check_names(given: Iterable[str], known: type) -> None:
    """Refuse options that do not exist, naming the one that is meant."""
    names = table(known)
    for name in given:
        if name not in names:
            raise SettingError(f"there is no option {name!r}; {hint(name, known)}")


def hint(name: str, known: type) -> str:
    """What was meant by an option that there is not.

    >>> from volpatch.core.options import Resources
    >>> hint("n_workers", Resources), hint("worker", Resources)
    ("it is called 'workers' here", "did you mean 'workers'?")
    """
    names = table(known)
    for ours, option in names.items():
        if name in option.synonyms:
            return f"it is called {ours!r} here"
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(names))}"


def check_choices(given: Mapping[str, Any], known: type) -> None:
    """Refuse a value that is none of an option's choices."""
    for name, value in given.items():
        choices = table(known)[name].choices
        if choices and value not in choices:
            raise SettingError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def plain(value: Any) -> Any:
    """A setting with the numbers of NumPy in it made Python's own; arrays are left alone.

    >>> import numpy as np
    >>> plain({"fill_value": np.float32(2), "chunks": (np.int64(8), 4)})
    {'fill_value': 2.0, 'chunks': (8, 4)}
    """
    import numpy as np

    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return {name: plain(each) for name, each in value.items()} if type(value) is dict else value


def takes(known: type) -> Callable[[_F], _F]:
    """Show the options of a function's `**options` in its signature and its docstring."""

    def decorate(function: _F) -> _F:
        own = inspect.signature(function)
        fixed = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        options = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=option.default,
                annotation=get_args(known.__annotations__[name])[0],
            )
            for name, option in table(known).items()
        ]
        function.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=[*fixed, *options]
        )
        text = inspect.cleandoc(function.__doc__ or "")
        function.__doc__ = text.replace("**options", _listing(known), 1)
        return function

    return decorate


def _listing(known: type) -> str:
    """The options as a docstring lists them."""
    lines = []
    for name, option in table(known).items():
        kind = "{" + ", ".join(map(repr, option.choices)) + "}" if option.choices else "optional"
        lines.append(f"{name} : {kind}")
        absence = f"  [{option.absence}]" if option.absence else ""
        lines.append(f"    {option.help}{absence}")
    return "\n".join(lines)
