"""Time contenders in turn on the same data, and print medians and ratios side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Contender = Callable[[], object]


@dataclass
class Timing:
    """Seconds of every counted run of one contender, or why it cannot do the case."""

    name: str
    seconds: list[float] = field(default_factory=list)
    why_not: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def alternate(contenders: Mapping[str, Contender], runs: int) -> list[Timing]:
    """Run all contenders in turn, `runs` times after one that is not counted.

    Taking turns lets a machine that slows down slow all of them.
    """
    timings = {name: Timing(name) for name in contenders}
    for counted in range(runs + 1):
        for name, contender in contenders.items():
            timing = timings[name]
            if timing.why_not:
                continue
            begin = time.perf_counter()
            try:
                contender()
            except ImportError as error:
                timing.why_not = f"not installed ({error.name})"
                continue
            if counted:
                timing.seconds.append(time.perf_counter() - begin)
    return list(timings.values())


def table(title: str, timings: list[Timing], work: float, unit: str, *, against: str) -> str:
    """Medians, work per second, and time relative to the contender `against`."""
    base = next(t for t in timings if t.name == against).median
    lines = [title, f"  {'':<28}{'median s':>10}{'min s':>9}{unit:>14}{'x ' + against:>16}"]
    for t in timings:
        if t.why_not or not t.seconds:
            lines.append(f"  {t.name:<28}{t.why_not:>10}")
            continue
        rate, ratio = work / t.median, t.median / base
        lines.append(
            f"  {t.name:<28}{t.median:>10.3f}{min(t.seconds):>9.3f}{rate:>14.2f}{ratio:>16.2f}"
        )
    return "\n".join(lines)
