"""What people are told, as rows of a name and a value: lines of text, or a table of a notebook."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

NAME_WIDTH = 10  # of the first column of a text
Rows = Iterable[tuple[str, object]]


def text(rows: Rows) -> str:
    """Lines with the name first; a value's further lines stand below its first.

    >>> print(text([("patch", "4 < 5"), ("memory", "1 GiB\\n2 terms")]))
    patch     4 < 5
    memory    1 GiB
              2 terms
    """
    lines = []
    for name, value in rows:
        for line in str(value).split("\n"):
            lines.append(f"{name:<{NAME_WIDTH - 1}} {line}")
            name = ""
    return "\n".join(lines)


def html(title: str, rows: Rows) -> str:
    """A table of names and values, all escaped; a value's lines become lines of its cell.

    >>> page = html("grid", [("patch", "4 < 5")])
    >>> '<tr><th scope="row">patch</th><td>4 &lt; 5</td></tr>' in page
    True
    """
    cells = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        f"<td>{'<br>'.join(map(escape, str(value).splitlines()))}</td></tr>"
        for name, value in rows
    )
    return f"<table><caption>{escape(title)}</caption><tbody>{cells}</tbody></table>"
