"""The digest of a model file, beside other work or not."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from qcli.errors import InputError
from qcli.graph import digest
from qcli.graph.digest import FileDigest, digest_of


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize("sizes", [(), (0,), (100,), (3, 100, 0, 50)])
def test_it_is_that_of_all_bytes_in_order(
    sizes: tuple[int, ...], block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest, "_BLOCK", block)
    contents = [np.random.default_rng(size).bytes(size) for size in sizes]
    files = tuple(tmp_path / str(number) for number in range(len(sizes)))
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    expected = hashlib.sha256(b"model" + b"".join(contents)).hexdigest()
    assert digest_of(b"model", files) == expected
    beside = FileDigest(b"model", files)
    assert beside.value() == expected and beside.value() == expected


def test_a_file_that_went_away_is_an_error_where_the_digest_is_asked_for(tmp_path: Path) -> None:
    beside = FileDigest(b"model", (tmp_path / "weights.bin",))
    with pytest.raises(InputError, match=r"weights\.bin' cannot be read any more") as caught:
        beside.value()
    assert "leave the model's files alone" in caught.value.hint
