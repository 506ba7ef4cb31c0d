"""Compare volpatch with other libraries and with a plain copy; print tables, save them."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from benchmarks import (
    dense,
    filters,
    goals,
    growth,
    in_memory,
    lazily,
    network,
    plot,
    reading,
    report,
    scale,
    startup,
    stores,
)
from benchmarks.harness import How, Table, answer, markdown

CASES: dict[str, ModuleType] = {
    "in-memory": in_memory,
    "dense": dense,
    "stores": stores,
    "filters": filters,
    "reading": reading,
    "torch": network,
    "lazy": lazily,
    "memory": growth,
    "scale": scale,
    "start-up": startup,
}


def tables(case: str, how: How, *, small: bool = False) -> Iterator[Table]:
    """The answers to a case's questions, one by one."""
    module = CASES[case]
    for question in module.questions(module.SMALL if small else module.FULL):
        yield answer(question, how)


def main(words: list[str] | None = None, say: Callable[[str], None] = print) -> None:
    lines = [
        f"  {name:<10} {(module.__doc__ or '').splitlines()[0]}" for name, module in CASES.items()
    ]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="\n".join(["cases (all, unless some are named):", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help="one of those below")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that all works")
    parser.add_argument(
        "--quick", action="store_true", help="the goals and what they need, in ten minutes"
    )
    parser.add_argument("--runs", type=int, help="counted runs of each contender")
    parser.add_argument(
        "--limit", type=float, default=600, help="seconds after which a run is ended (600)"
    )
    parser.add_argument(
        "--save",
        action="store_true",
        help="keep the tables, a plot, the machine and the versions in RESULTS.md, .json and "
        ".png; cases that are not run now stay as they are",
    )
    parser.add_argument(
        "--into", type=Path, default=Path(__file__).parent, help="folder for --save (benchmarks)"
    )
    given = sys.argv[1:] if words is None else words
    asked = parser.parse_args(given)
    for name in asked.cases:
        if name not in CASES:
            parser.error(f"there is no case {name!r}; there are {', '.join(CASES)}")
    command = shlex.join(["python", "-m", "benchmarks", *_without_path(given)])
    how = How(runs=asked.runs, limit=asked.limit)
    if asked.quick:
        if asked.cases or asked.small:
            parser.error("--quick chooses its cases and sizes itself: leave them out")
        tables_of_goals = []
        for question in goals.questions():
            tables_of_goals.append(answer(question, how))
            say(markdown(tables_of_goals[-1]) + "\n")
        say(goals.report(tables_of_goals))
        if asked.save:
            report.save(asked.into, "quick", command, tables_of_goals)
        return
    for case in asked.cases or CASES:
        done = []
        for table in tables(case, how, small=asked.small):
            say(markdown(table) + "\n")
            done.append(table)
            if asked.save:  # at once: the next one may take an hour
                report.save(asked.into, case, command, done)
    if asked.save:
        plot.draw(asked.into)


def _without_path(words: list[str]) -> list[str]:
    kept = [w for i, w in enumerate(words) if w != "--into" and words[i - 1 : i] != ["--into"]]
    return [w for w in kept if not w.startswith("--into=")]


if __name__ == "__main__":
    main()
