"""How much memory the work may take, and what it would."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from qcli.errors import UsageError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", re.IGNORECASE | re.ASCII)

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def parse_size(text: str) -> int:
    """Bytes: `600MB`, `4GB`, `1.5 GiB`, `1000000`. Raises UsageError for anything else."""
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * _UNITS[(match[2] or "").lower()]) if match is not None else 0
    if size <= 0:
        raise UsageError(f"'{text}' is no amount of memory", "write it as 600MB or 4GB")
    return size


def shown(size: int) -> str:
    """`600 MB`, `6.4 GB`."""
    return f"{size / 1e6:.0f} MB" if size < 10**9 else f"{size / 1e9:.1f} GB"


@dataclass(frozen=True)
class Budget:
    """Bytes that the work may take, None where neither the user nor the system names a number.

    The weights of what runs are held against it, which take by far the most.
    """

    limit: int | None = None
    given: bool = False

    def fits(self, needed: int) -> bool:
        return self.limit is None or needed <= self.limit

    def shortage(self, needed: int) -> str:
        """What does not fit into what, as the end of a sentence."""
        source = "--max-memory allows" if self.given else "is free"
        return f"takes about {shown(needed)} of memory, more than the {shown(self.limit or 0)} that {source}"


UNLIMITED = Budget()


def budget_of(given: int | None) -> Budget:
    """What the user named, or what this machine or this container has left."""
    return Budget(given, given=True) if given is not None else Budget(available_memory())


def available_memory() -> int | None:
    """Bytes that can be had now, swap left out; None where that cannot be known."""
    free = [size for size in (_machine(), _container()) if size is not None]
    return min(free, default=None)


def _machine() -> int | None:
    if os.name == "nt":
        return _windows()
    if _MEMINFO.exists():
        for line in _MEMINFO.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:  # elsewhere only the memory in all is known, of which half is taken for free
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (ValueError, OSError, AttributeError):
        return None


def _windows() -> int | None:
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)


def _container() -> int | None:
    """What a control group (version 2, or 1) has left; pages of files that it can give back count as free."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        most, now = _number(_CGROUP / limit), _number(_CGROUP / used)
        if most is not None and now is not None:
            return max(most - now + _reclaimable(_CGROUP / cached), 0)
    return None


def _number(path: Path) -> int | None:
    """The number in a file; None if there is no such file or it says `max`."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _reclaimable(path: Path) -> int:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))
