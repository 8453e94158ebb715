"""A file appears whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from models import assert_equal, assert_same, conv_net, dense_net, feeds_for, node, normal, proto_of, run, wrapped
from onnx import numpy_helper

from qcli.errors import ResourceError, UsageError
from qcli.files import check_writable, replace_file
from qcli.graph import load_model, on_disk, save_model
from qcli.graph import save as saving
from qcli.runtime import Session


def test_what_is_saved_loads_again_and_computes_the_same(tmp_path: Path) -> None:
    save_model(wrapped(conv_net()), tmp_path / "m.onnx")
    assert_same(conv_net(), load_model(tmp_path / "m.onnx"), tolerance=1e-6)
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    save_model(wrapped(conv_net()), tmp_path / "a.onnx")
    save_model(wrapped(conv_net()).copy(), tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_saving_changes_nothing_in_memory(tmp_path: Path) -> None:
    model = wrapped(conv_net())
    before = model.serialize()
    save_model(model, tmp_path / "m.onnx")
    assert model.serialize() == before


FAILURES = [
    (OSError(errno.ENOSPC, "No space left on device"), ResourceError),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), ResourceError),
    (PermissionError(errno.EACCES, "Permission denied"), UsageError),
]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(("failure", "kind"), FAILURES)
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, failure: OSError, kind: type[Exception]
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")

    def fail(*_: Any) -> None:
        raise failure

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(kind, match=r"m\.onnx"):
        save_model(wrapped(dense_net()), path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["m.onnx"]


def test_an_interrupt_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        replace_file(tmp_path / "m.onnx", b"new")
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        save_model(wrapped(dense_net()), tmp_path / "absent" / "m.onnx")


def test_a_folder_as_output_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        save_model(wrapped(dense_net()), tmp_path)
    assert os.listdir(tmp_path) == []


def test_places_are_checked_before_the_work(tmp_path: Path) -> None:
    check_writable(tmp_path / "m.onnx")
    assert os.listdir(tmp_path) == []
    with pytest.raises(UsageError, match="is a folder"):
        check_writable(tmp_path)
    with pytest.raises(UsageError, match="is a folder"):
        check_writable(Path())
    with pytest.raises(UsageError, match="does not exist") as caught:
        check_writable(tmp_path / "absent" / "m.onnx")
    assert "mkdir" in caught.value.hint
    with pytest.raises(UsageError):
        check_writable(tmp_path / ("a" * 300 + ".onnx"))


def wide_net() -> onnx.ModelProto:
    """Three weights above the size that travels with the graph, two of them equal."""
    weights = {"w1": normal(0, 16, 32), "w2": normal(1, 32, 16), "w3": normal(0, 16, 32)}
    nodes = [node("MatMul", "x w1", "a"), node("MatMul", "a w2", "b"), node("MatMul", "b w3", "y")]
    return proto_of(nodes, {"x": ["n", 16]}, {"y": ["n", 32]}, weights)


def files_in(folder: Path) -> list[str]:
    """The names, with the digest of a data file left out."""
    return sorted(re.sub(r"\.[0-9a-f]{16}\.", ".DIGEST.", name) for name in os.listdir(folder))


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights go beside the model however small they are."""
    monkeypatch.setattr(saving, "_EMBED_LIMIT", 100)


@pytest.mark.usefixtures("outside")
def test_large_weights_go_to_a_file_beside_the_model(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model = wrapped(wide_net())
    save_model(model, path)
    assert_same(wide_net(), model)
    assert files_in(tmp_path) == ["m.onnx", "m.onnx.DIGEST.data"]
    onnx.checker.check_model(str(path), full_check=True)
    assert_same(wide_net(), load_model(path))
    feeds = feeds_for(model)
    assert_equal(run(wide_net(), feeds), Session(path).run(feeds))


@pytest.mark.usefixtures("outside")
def test_equal_weights_are_written_once(tmp_path: Path) -> None:
    save_model(wrapped(wide_net()), tmp_path / "m.onnx")
    [data] = tmp_path.glob("*.data")
    assert data.stat().st_size == 4096 + 16 * 32 * 4


@pytest.mark.usefixtures("outside")
def test_the_same_weights_have_the_same_data_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_model(wrapped(wide_net()), tmp_path / name / "m.onnx")
    assert os.listdir(tmp_path / "a") == os.listdir(tmp_path / "b")
    assert (tmp_path / "a" / "m.onnx").read_bytes() == (tmp_path / "b" / "m.onnx").read_bytes()


def other_net() -> onnx.ModelProto:
    proto = wide_net()
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(normal(7, 16, 32), "w1"))
    return proto


@pytest.mark.usefixtures("outside")
def test_the_old_data_go_after_the_new_model_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    save_model(wrapped(wide_net()), path)
    (tmp_path / f"m.onnx.{'0' * 16}.data").write_bytes(b"somebody else's")
    monkeypatch.setattr(saving, "_EMBED_LIMIT", 100)
    save_model(wrapped(other_net()), path)
    assert files_in(tmp_path) == ["m.onnx", "m.onnx.DIGEST.data", "m.onnx.DIGEST.data"]
    assert_same(other_net(), load_model(path))
    monkeypatch.setattr(saving, "_EMBED_LIMIT", 1 << 30)
    save_model(wrapped(wide_net()), path)
    assert files_in(tmp_path) == ["m.onnx", "m.onnx.DIGEST.data"]
    assert_same(wide_net(), load_model(path))


@pytest.mark.usefixtures("outside")
def test_a_model_saved_over_its_own_data_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    save_model(wrapped(wide_net()), path)
    monkeypatch.setattr(on_disk, "LARGE_BYTES", 100)
    monkeypatch.setattr(on_disk, "STORED_BYTES", 100)
    model = load_model(path)
    save_model(model, path)
    assert_same(wide_net(), load_model(path))
    assert_same(wide_net(), model)


KILLED_AT = (1, 2)


@pytest.mark.parametrize("rename", KILLED_AT)
@pytest.mark.usefixtures("outside")
def test_a_kill_at_any_rename_leaves_a_matching_pair(tmp_path: Path, rename: int) -> None:
    """The process dies without tidying up: the old model or the new one is there, with its own weights."""
    path = tmp_path / "m.onnx"
    save_model(wrapped(wide_net()), path)
    (tmp_path / "other").write_bytes(other_net().SerializeToString())
    program = (
        "import os, sys; from pathlib import Path; from qcli.graph import load_model, save_model, save\n"
        "save._EMBED_LIMIT, real, count = 100, os.replace, [0]\n"
        "def replace(*names):\n"
        "    count[0] += 1\n"
        "    os._exit(9) if count[0] == int(sys.argv[2]) else real(*names)\n"
        "folder = Path(sys.argv[1]); model = load_model(folder / 'other'); os.replace = replace\n"
        "save_model(model, folder / 'm.onnx')"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path), str(rename)], check=False)
    assert ended.returncode == 9
    assert_same(wide_net(), load_model(path))
    onnx.checker.check_model(str(path))
    save_model(wrapped(other_net()), path)  # and the next run succeeds
    assert_same(other_net(), load_model(path))


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.usefixtures("outside")
def test_a_failure_with_external_data_leaves_no_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(ResourceError):
        save_model(wrapped(wide_net()), tmp_path / "m.onnx")
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("outside")
def test_data_whose_model_cannot_be_written_go_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    save_model(wrapped(wide_net()), path)
    before = sorted(os.listdir(tmp_path))

    def fail(*_: Any) -> None:
        raise ResourceError("no space left")

    monkeypatch.setattr(saving, "replace_file", fail)
    with pytest.raises(ResourceError):
        save_model(wrapped(other_net()), path)
    with pytest.raises(ResourceError):
        save_model(wrapped(wide_net()), path)
    assert sorted(os.listdir(tmp_path)) == before
    assert_same(wide_net(), load_model(path))
