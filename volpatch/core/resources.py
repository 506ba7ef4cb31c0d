"""What this machine grants: processors, memory, and what a process has taken of it.

Batch systems and containers grant less than the machine has; the smallest word counts.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

# of the memory that is granted, the part that a run takes unless it is told otherwise
FAIR_SHARE = 0.5
_CGROUP = Path("/sys/fs/cgroup")
_BATCH_MEMORY = {"SLURM_MEM_PER_NODE": 2**20, "PBS_RESC_MEM": 1, "LSB_MAX_MEM_RUSAGE": 2**10}


def processors() -> int:
    """Cores that this process may use."""
    counts = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()]
    counts.append(_granted("SLURM_CPUS_PER_TASK"))
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        counts.append(max(1, round(int(quota) / int(period))))
    return min((c for c in counts if c and c > 0), default=1)


def _granted(name: str) -> int | None:
    """What a variable of a batch system grants; None where it is not set, or sets no bound.

    0 stands for all there is: `--mem=0` asks Slurm for the memory of the whole node.
    """
    value = os.environ.get(name, "").strip()
    number = int(value) if value.isascii() and value.isdigit() else 0
    return number or None


def memory_granted() -> int:
    """Bytes that this machine, its cgroup or the batch job leave to this process."""
    return min(_grants(), default=2 * 2**30)


def _grants() -> Iterator[int]:
    with suppress(OSError, KeyError, ValueError):
        yield _available()
    with suppress(OSError, ValueError):
        limit, used = int((_CGROUP / "memory.max").read_text()), 0
        with suppress(OSError, ValueError):
            used = int((_CGROUP / "memory.current").read_text())
        yield max(0, limit - used // 2)
    with suppress(OSError, ValueError):
        yield int((_CGROUP / "memory" / "memory.limit_in_bytes").read_text())
    for name, unit in _BATCH_MEMORY.items():
        if granted := _granted(name):
            yield granted * unit
    if granted := _granted("SLURM_MEM_PER_CPU"):
        yield granted * 2**20 * processors()


def _available() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024


def default_memory_limit() -> int:
    """A fair share of what is granted."""
    return int(memory_granted() * FAIR_SHARE)


def resident_bytes() -> int:
    """Memory that this process holds now; 0 where the system does not tell."""
    with suppress(OSError, ValueError, KeyError):
        return _status("VmRSS")
    return 0


def peak_bytes() -> int:
    """The most memory this process has held since the last `forget_peak`."""
    with suppress(OSError, ValueError, KeyError):
        return _status("VmHWM")
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def forget_peak() -> None:
    """Let `peak_bytes` start anew, where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def end_with_parent() -> None:
    """Let the kernel end this process with the thread that started it, where it can (Linux).

    It does so at once and in any case, also in compiled code that lets no other thread run.
    """
    death_signal = 1  # PR_SET_PDEATHSIG
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(death_signal, signal.SIGKILL, 0, 0, 0)


def growth(call: Callable[[], object]) -> int:
    """Bytes by which memory rises, at its highest, while `call` runs."""
    give_back()
    before = resident_bytes()
    forget_peak()
    result = call()
    taken = peak_bytes() - before
    del result
    return max(0, taken)


def give_back() -> None:
    """Give freed memory back to the system, so that taking it again shows."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
