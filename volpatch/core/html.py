"""Plain tables for notebooks: a caption, row headers, text. Everything is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


def table(title: str, rows: Iterable[tuple[str, object]]) -> str:
    """An HTML table of names and values; a value's lines become lines of its cell.

    >>> page = table("grid", [("patch", "4 < 5")])
    >>> '<tr><th scope="row">patch</th><td>4 &lt; 5</td></tr>' in page
    True
    """
    cells = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        f"<td>{'<br>'.join(map(escape, str(value).splitlines()))}</td></tr>"
        for name, value in rows
    )
    return f"<table><caption>{escape(title)}</caption><tbody>{cells}</tbody></table>"


def table_of_text(title: str, text: str, column: int) -> str:
    """A table of a text report whose names stand before `column` and values after it.

    >>> page = table_of_text("t", "name   value\\n       more", column=7)
    >>> page == table("t", [("name", "value\\nmore")])
    True
    """
    rows: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        name, value = line[:column].strip(), line[column:].strip()
        if name or not rows:
            rows.append((name, []))
        rows[-1][1].append(value)
    return table(title, [(name, "\n".join(values)) for name, values in rows])
