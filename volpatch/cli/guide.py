"""The guides that travel with the program: listed, and shown by name."""

from __future__ import annotations

import sys
from importlib.resources import files

import click

from volpatch.core.errors import SettingError

FOLDER = files("volpatch") / "guides"
# in the order in which a newcomer reads them
NAMES = (
    *("start", "windows", "filters", "lazy", "formats", "output"),
    *("cluster", "repair", "coming-from", "performance", "developing"),
)


def text_of(name: str) -> str:
    """A guide, in Markdown.

    Raises
    ------
    SettingError
        There is no guide of that name.
    """
    if name not in NAMES:
        raise SettingError(f"there is no guide {name!r}; there are {', '.join(NAMES)}")
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def title_of(name: str) -> str:
    """The first heading of a guide."""
    return text_of(name).partition("\n")[0].removeprefix("# ")


def show(name: str | None) -> None:
    """Print a guide, page by page on a terminal; without a name, the list of all."""
    if name is None:
        for one in NAMES:
            click.echo(f"{one:<12} {title_of(one)}")
    elif sys.stdout.isatty():
        click.echo_via_pager(text_of(name))
    else:
        click.echo(text_of(name), nl=False)
