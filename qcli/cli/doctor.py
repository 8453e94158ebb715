"""`qcli doctor`."""

from __future__ import annotations

from qcli.cli._screen import Screen


def doctor(screen: Screen) -> None:
    """Show versions, the processor and integer kernels."""
    from qcli.cli._tables import show_diagnosis
    from qcli.doctor import examine

    screen.show(examine(), show_diagnosis)
