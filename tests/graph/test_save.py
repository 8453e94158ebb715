"""A file appears whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import onnx
import pytest
from models import assert_same, conv_net, dense_net, wrapped

from qcli.errors import ResourceError, UsageError
from qcli.files import check_writable, replace_file
from qcli.graph import load_model, save_model
from qcli.graph import save as saving


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


def test_large_weights_go_to_a_file_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "_EMBED_LIMIT", 100)
    path = tmp_path / "m.onnx"
    model = wrapped(dense_net())
    save_model(model, path)
    assert_same(dense_net(), model)
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.onnx.data"]
    onnx.checker.check_model(str(path), full_check=True)
    assert_same(dense_net(), load_model(path))


def test_a_failure_with_external_data_leaves_no_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "_EMBED_LIMIT", 100)

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ResourceError):
        save_model(wrapped(dense_net()), tmp_path / "m.onnx")
    assert os.listdir(tmp_path) == []
