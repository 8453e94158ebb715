"""How much memory may be taken."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from qcli import memory
from qcli.errors import UsageError
from qcli.memory import Budget, available_memory, budget_of, parse_size, shown


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("600MB", 600_000_000), ("4GB", 4_000_000_000), ("4gb", 4_000_000_000), ("1.5 GiB", 3 << 29),
        ("1000000", 1_000_000), (" 512 MiB ", 512 << 20), ("2g", 2_000_000_000), ("10kb", 10_000), ("100B", 100),
    ],
)  # fmt: skip
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0", "0.0001", "4 GB!", "GB", "4PB", "1e9", "٣GB"])
def test_what_is_no_size_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="no amount of memory") as caught:
        parse_size(text)
    assert "600MB" in caught.value.hint


def test_sizes_are_shown_as_people_write_them() -> None:
    assert (shown(600_000_000), shown(6_440_000_000)) == ("600 MB", "6.4 GB")


def test_what_fits_into_a_budget() -> None:
    budget = Budget(1000, given=True)
    assert budget.fits(1000) and not budget.fits(1001)
    assert Budget().fits(10**15)


def test_a_shortage_names_both_numbers_and_who_set_the_limit() -> None:
    assert Budget(600_000_000, given=True).shortage(6_400_000_000) == (
        "takes about 6.4 GB of memory, more than the 600 MB that --max-memory allows"
    )
    assert Budget(10**9).shortage(3_200_000_000) == ("takes about 3.2 GB of memory, more than the 1.0 GB that is free")


def test_a_given_limit_counts_and_otherwise_what_is_free() -> None:
    assert budget_of(1000) == Budget(1000, given=True)
    assert not budget_of(None).given


@pytest.mark.skipif(sys.platform == "win32", reason="needs psutil there")
def test_the_free_memory_of_this_machine_is_known() -> None:
    found = available_memory()
    assert found is not None
    assert 0 < found <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _group(folder: Path, names: dict[str, str]) -> None:
    for name, text in names.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


MIB = 1 << 20


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        ({"memory.max": "max\n", "memory.current": "1\n"}, None),
        ({"memory.max": f"{8 * MIB}\n", "memory.current": f"{3 * MIB}\n"}, 5 * MIB),
        (
            {
                "memory.max": f"{8 * MIB}\n",
                "memory.current": f"{3 * MIB}\n",
                "memory.stat": f"anon 5\ninactive_file {MIB}\nactive_file {MIB}\n",
            },
            7 * MIB,
        ),
        ({"memory.max": f"{MIB}\n", "memory.current": f"{3 * MIB}\n"}, 0),
        (
            {"memory/memory.limit_in_bytes": f"{8 * MIB}\n", "memory/memory.usage_in_bytes": f"{6 * MIB}\n"},
            2 * MIB,
        ),
    ],
)
def test_a_containers_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], free: int | None
) -> None:
    _group(tmp_path, files)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_machine", lambda: None)
    assert available_memory() == free


def test_the_smaller_of_machine_and_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _group(tmp_path, {"memory.max": "1000\n", "memory.current": "0\n"})
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_machine", lambda: 500)
    assert available_memory() == 500
    monkeypatch.setattr(memory, "_machine", lambda: 5000)
    assert available_memory() == 1000


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="POSIX")
def test_without_a_proc_file_half_of_all_memory_is_taken_for_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "absent")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert available_memory() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
