"""A step that names the operators which it looks for is left out, and only then, where there are none."""

from __future__ import annotations

import pytest
from models import SAMPLE_MODELS

from benchmarks.backend import cases
from qcli.errors import QcliError
from qcli.graph import Model, load_model
from qcli.plugins import create, names
from qcli.prepare import prepare
from qcli.runtime import Session
from qcli.watch import Watch

LOOKING = [name for name in names("steps") if create("steps", name).looks_for]
SAMPLES = sorted(path.name for path in SAMPLE_MODELS.iterdir() if (path / "model.onnx").exists())
EVERY = 40
"""Of the models of the onnx package one in so many is looked at."""


def has_any(model: Model, operators: tuple[str, ...]) -> bool:
    return any(node.op_type in operators for node in model.nodes())


@pytest.mark.parametrize("step", LOOKING)
def test_nothing_is_missed(step: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("m") / "model.onnx"
    looked = 0
    for case in cases()[::EVERY]:
        path.write_bytes(case.model)
        try:
            model = load_model(path)
        except QcliError:
            continue
        plugin = create("steps", step)
        if not has_any(model, plugin.looks_for) and not getattr(plugin, "works_blindly", lambda: True)():
            assert not plugin.requests(model), case.name
            looked += 1
        elif not has_any(model, plugin.looks_for):
            assert plugin.run(model) == 0, case.name
            looked += 1
    assert looked > 20


@pytest.mark.parametrize("name", SAMPLES)
def test_a_step_without_its_operators_is_not_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(SAMPLE_MODELS / name / "model.onnx")

    def refuse(*_: object) -> int:
        raise AssertionError("it was run")

    for step in LOOKING:
        plugin = type(create("steps", step))
        if not has_any(model, plugin.looks_for):
            monkeypatch.setattr(plugin, "run", refuse)
            monkeypatch.setattr(plugin, "run_measured", refuse, raising=False)
    watch = Watch()
    Session(prepare(model, 13, LOOKING, None, watch).runnable())
    assert not [text for text in watch.warnings if "undone" in text]
