"""The words of the command line: options, how they are read, how the help lists them.

What Python takes too is declared in `volpatch.core.options`; only what is the command's own is
declared here. Messages come in Python's spelling, and leave in that of the command.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NoReturn, TypeVar

import click

from volpatch.core.declared import table
from volpatch.core.options import RunOptions

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")


def _number(text: str) -> int | float:
    """A number; whole ones as they are written, because a float loses the last bits of 64."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a number such as 0 or 0.5") from None


def _numbers(text: str) -> int | tuple[int, ...]:
    """One whole number, or one per axis."""
    try:
        return _one_or_all([int(part) for part in text.split(",")])
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not whole numbers such as 64 or 64,128,128"
        ) from None


def _words(text: str) -> str | tuple[str, ...]:
    """One word, or one per axis: hann, or 32,50%,0.25."""
    return _one_or_all([part.strip() for part in text.split(",")])


def _series(text: str) -> int | str:
    """A number, or all."""
    if text != "all" and not text.isdecimal():
        raise click.BadParameter(f"{text!r} is no number from 0 on, nor 'all'")
    return text if text == "all" else int(text)


def _axis(text: str) -> int | str:
    """An axis by number or name."""
    return int(text) if text.removeprefix("-").isdecimal() else text


def _one_or_all(values: Sequence[_T]) -> _T | tuple[_T, ...]:
    return values[0] if len(values) == 1 else tuple(values)


class TopicOption(click.Option):
    """An option that is listed under a topic."""

    def __init__(self, *args: Any, topic: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.topic = topic


class TopicCommand(click.Command):
    """A command whose help groups the options by topic."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options; one that there is not is answered with the one that is meant."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            self._answer(ctx, error, given)

    def _answer(self, ctx: click.Context, error: click.NoSuchOption, args: list[str]) -> NoReturn:
        ours = {flag for param in self.params for flag in param.opts}
        name = error.option_name.lstrip("-").replace("-", "_")
        for known, option in table(RunOptions).items():
            flag = option.command_name(known)
            if name in option.synonyms and flag in ours:
                said = f"No such option: {error.option_name}. It is called {flag} here."
                raise click.UsageError(said, ctx) from None
        if "--param" in ours and (_takes(args, name) or not error.possibilities):
            said = (
                f"No such option: {error.option_name}. If it is a parameter of the function, "
                f"write --param {name}={_after(error.option_name, args) or 'VALUE'}"
            )
            raise click.UsageError(said, ctx) from None
        raise error

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, topic by topic."""
        topics: dict[str, list[tuple[str, str]]] = {topic: [] for topic in _TOPICS}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                topics.setdefault(getattr(param, "topic", "Other"), []).append(record)
        for topic, records in topics.items():
            if records:
                with formatter.section(topic):
                    formatter.write_dl(records)


def _after(word: str, args: Sequence[str]) -> str:
    """What follows a word of a command line; "" where nothing does."""
    return next((b for a, b in pairwise(args) if a == word), "")


def _takes(args: Sequence[str], name: str) -> bool:
    """Whether the ready-made operation that is applied has a parameter of this name."""
    from volpatch.functions.registry import OPERATIONS

    operation = OPERATIONS.get(_after("--apply", args))
    return operation is not None and name in operation.filled({})


_TOPICS = ("Function", "Patches", "Skipping", "Volume", "Output", "Failures", "Resources")
# how a value is read, by the way it is shown in the help
_TYPES: dict[str, Any] = {
    "N": int,
    "X": _number,
    "N[,N…]": _numbers,
    "NAME[,NAME…]": _words,
    "N|N%[,…]": _words,
    "AXIS": _axis,
    "N|all": _series,
}
# on a terminal, or in the log of a batch job, a long run tells how far it is
_DEFAULTS = {"progress": "auto"}


@dataclass(frozen=True)
class Row:
    """One option of the command.

    Attributes
    ----------
    flags : its names there, and last that of its argument in Python where it is another one.
    shown : how a value is written; "" for a flag.
    """

    topic: str
    flags: tuple[str, ...]
    shown: str
    text: str
    default: Any = None
    many: bool = False

    @classmethod
    def of(cls, known: type, *names: str) -> Iterator[Row]:
        """Those that a class of options declares, or some of them."""
        for name, option in table(known).items():
            if option.shown is None or (names and name not in names):
                continue
            absence = _DEFAULTS.get(name, option.absence)
            yield cls(
                option.topic,
                (option.command_name(name), name),
                option.shown,
                as_command(option.help) + (f"  [{absence}]" if absence else ""),
                _DEFAULTS.get(name, None if option.shown else False),  # else the library's
                option.many,
            )

    @property
    def kind(self) -> Any:
        """How a value is read."""
        if "|" in self.shown and self.shown not in _TYPES:
            return click.Choice(self.shown.split("|"))
        return _TYPES.get(self.shown)

    def __call__(self, function: _F) -> _F:
        """Give a command this option."""
        return click.option(
            *self.flags,
            cls=TopicOption,
            topic=self.topic,
            type=self.kind,
            metavar=None if isinstance(self.kind, click.Choice) else self.shown or None,
            is_flag=not self.shown,
            multiple=self.many,
            default=self.default,
            help=self.text,
        )(function)


FUNCTION = (
    Row(
        "Function",
        ("--apply",),
        "NAME",
        "One of `volpatch filters`, package.module:function or file.py:function.",
    ),
    Row(
        "Function",
        ("--factory",),
        "NAME",
        "Instead: called once per worker process, returns the function.",
    ),
    Row(
        "Function",
        ("--param", "params"),
        "KEY=VALUE",
        "Argument of either, as JSON: sigma=1.5, size=[1,3,3].",
        many=True,
    ),
    Row(
        "Function",
        ("--finalize",),
        "NAME",
        "Runs on blended blocks before they are written (threshold, …).",
    ),
)
FORMAT = Row(
    "Output",
    ("--format", "form"),
    "text|json",
    "How the result is printed on stdout.  [text]",
    "text",
)
STATUS_FORMAT = Row(
    "Output",
    ("--format", "form"),
    "text|json|ids",
    "ids: regions that are left, as 0,3-5.  [text]",
    "text",
)
SAVE = Row("Output", ("-o", "--save"), "FILE", "Save as a job that `run` repeats exactly.")


def options(*rows: type | Row | Iterable[Row]) -> Callable[[_F], _F]:
    """Give a command the options that classes declare, and some of its own."""
    every: list[Row] = []
    for each in rows:
        if isinstance(each, type):
            every.extend(Row.of(each))
        else:
            every.extend([each] if isinstance(each, Row) else each)

    def decorate(function: _F) -> _F:
        for row in reversed(every):
            function = row(function)
        return function

    return decorate


# -- spelling ------------------------------------------------------------------------------


def _spelling() -> tuple[dict[str, str], re.Pattern[str], re.Pattern[str]]:
    """Flags by name, and where names stand in a text: with a value, and by themselves."""
    flags = {
        name: option.command_name(name)
        for name, option in table(RunOptions).items()
        if option.shown is not None
    }
    outside = r"(?<![\w/.=-])"
    value = r"'[^']*'|\"[^\"]*\"|\([^)]*\)|[^\s,;:)'\"]+"
    said = re.compile(rf"{outside}({'|'.join(flags)})=({value})?")
    # a name of one word is a word of English too
    bare = [name for name in flags if "_" in name]
    return flags, said, re.compile(rf"{outside}({'|'.join(bare)})(?![\w=/]|\.\w)")


_FLAGS, _SAID, _BARE = _spelling()


def as_command(text: str) -> str:
    """A message that speaks of options as Python spells them, in the spelling of the command.

    >>> as_command("choose window='crop', memory_limit='2GiB' or a smaller batch_size")
    'choose --window crop, --memory-limit 2GiB or a smaller --batch-size'
    >>> as_command("region=(64, 128) is asked for; start over with overwrite=True")
    '--region 64,128 is asked for; start over with --overwrite'
    """
    return _BARE.sub(lambda found: _FLAGS[found[1]], _SAID.sub(_with_flag, text))


_QUOTES = "'\""


def _with_flag(found: re.Match[str]) -> str:
    flag, value = _FLAGS[found[1]], found[2] or ""
    if value == "True":
        return flag
    if value.startswith("("):
        value = value[1:-1].replace(" ", "").rstrip(",")
    return f"{flag} {value.strip(_QUOTES)}".rstrip()
