"""How far a run is: a bar on a terminal, plain lines in a batch log, or nothing."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TextIO

from volpatch.core.options import check_choice

BAR_SECONDS = 0.2
LOG_SECONDS = 15.0
WIDTH = 30


def show_seconds(seconds: float) -> str:
    """A time span for people.

    >>> show_seconds(3.21), show_seconds(75), show_seconds(7300)
    ('3.2 s', '1 min 15 s', '2 h 01 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


@dataclass
class Progress:
    """Patches done out of `total`, told on `stream` (stderr: stdout is for results)."""

    total: int
    mode: str = "auto"
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    done: int = 0

    def __post_init__(self) -> None:
        check_choice("progress", self.mode)
        if self.mode == "auto":
            self.mode = "bar" if self.stream.isatty() else "log"
        self.begin = self.last = time.monotonic()

    def add(self, patches: int) -> None:
        """Count finished patches, and say so when it is time."""
        self.done += patches
        now = time.monotonic()
        if self.mode == "none":
            return
        if now - self.last >= (BAR_SECONDS if self.mode == "bar" else LOG_SECONDS):
            self.last = now
            self._tell(now)

    def say(self, text: str) -> None:
        """Tell something in words, on a line of its own."""
        if self.mode != "none":
            self._write(f"{text}\n")

    def close(self) -> None:
        """Say the last word."""
        if self.mode == "bar":
            self._tell(time.monotonic())
            self._write("\n")

    def _tell(self, now: float) -> None:
        passed = now - self.begin
        part = self.done / max(1, self.total)
        left = show_seconds(passed / part - passed) if part > 0 else "unknown"
        text = f"{part:6.1%}  {self.done:,} of {self.total:,} patches, {left} left"
        if self.mode == "bar":
            full = int(part * WIDTH)
            bar = "#" * full + "-" * (WIDTH - full)
            self._write(f"\r[{bar}] {text:<60}")
        else:
            self._write(text.strip() + "\n")

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:  # whoever was told is gone: no reason to end the run
            self.mode = "none"
