"""`labels.csv`: what is read and which rows are refused."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcli.errors import InputError
from qcli.samples._labels import LabelTable, read_labels, together


def table(folder: Path, text: str | bytes) -> tuple[LabelTable, ...]:
    path = folder / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return (LabelTable(path=path),)


def refused(folder: Path, text: str | bytes, names: tuple[str, ...] = ("a.npz", "b.npz")) -> str:
    with pytest.raises(InputError) as caught:
        read_labels(table(folder, text), names, folder)
    assert caught.value.exit_code == 3
    assert "labels.csv" in caught.value.message
    return caught.value.message


def test_no_tables_no_labels(tmp_path: Path) -> None:
    assert read_labels((), ("a.npz",), tmp_path) == {}


@pytest.mark.parametrize(
    "text",
    [
        "file,label\na.npz,3\nb.npz,0\n",
        "\ufefffile,label\r\na.npz, 3 \r\n\r\n./b.npz,0\r\n",
        'name,label,file,extra\nx,3,"a.npz",1\ny,0,b.npz,\n',
        "file,label\nb.npz,0\na.npz,3",
    ],
)
def test_reads(tmp_path: Path, text: str) -> None:
    assert read_labels(table(tmp_path, text), ("a.npz", "b.npz"), tmp_path) == {"a.npz": 3, "b.npz": 0}


def test_files_are_relative_to_the_table(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "labels.csv").write_text("file,label\na.npz,1\n../b.npz,2\n")
    tables = (LabelTable(path=tmp_path / "sub" / "labels.csv", folder="sub"),)
    assert read_labels(tables, ("sub/a.npz", "b.npz"), tmp_path) == {"sub/a.npz": 1, "b.npz": 2}


def test_row_for_an_existing_file_that_is_not_among_the_samples(tmp_path: Path) -> None:
    (tmp_path / "other.npz").touch()
    labels = read_labels(table(tmp_path, "file,label\nother.npz,1\na.npz,2\n"), ("a.npz",), tmp_path)
    assert labels["a.npz"] == 2


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("c.npz,1", "row 3: there is no sample 'c.npz'"),
        (",1", "row 3: there is no sample '.'"),
        (f"{'n' * 5000},1", "row 3: there is no sample 'nnn"),
        ("b.npz,cat", "row 3: label 'cat' of 'b.npz' is not a class index"),
        ("b.npz,1.0", "row 3: label '1.0'"),
        ("b.npz,-1", "row 3: label '-1'"),
        ("b.npz,", "row 3: label ''"),
        ("b.npz", "row 3: label ''"),
        (f"b.npz,{'9' * 6000}", "row 3: label '999"),
        ("a.npz,1", "row 3: 'a.npz' has a label already"),
        ("./a.npz,2", "row 3: 'a.npz' has a label already"),
    ],
)
def test_bad_rows_name_file_and_row(tmp_path: Path, row: str, told: str) -> None:
    assert told in refused(tmp_path, f"file,label\na.npz,1\n{row}\n")


def test_bad_rows_are_listed_together(tmp_path: Path) -> None:
    lines = refused(tmp_path, "file,label\na.npz,x\nb.npz,1\nc.npz,2\n").splitlines()
    assert lines[0] == "2 problems with labels:"
    assert ["row 2" in lines[1], "row 4" in lines[2]] == [True, True]


def test_samples_without_label(tmp_path: Path) -> None:
    assert "no row for sample 'b.npz'" in refused(tmp_path, "file,label\na.npz,1\n")


@pytest.mark.parametrize("text", ["", "a.npz,1\n", "file;label\na.npz;1\n", "file,class\na.npz,1\n"])
def test_header_is_needed(tmp_path: Path, text: str) -> None:
    assert "the first line must be 'file,label'" in refused(tmp_path, text)


@pytest.mark.parametrize("text", [b"file,label\n\xff\xfe,1\n", b'file,label\n"a.npz,1\n'])
def test_not_a_table(tmp_path: Path, text: bytes) -> None:
    assert "not readable as labels" in refused(tmp_path, text)


def test_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.csv.*No such file"):
        read_labels((LabelTable(path=tmp_path / "gone.csv"),), ("a.npz",), tmp_path)


@given(st.dictionaries(st.text("abc/é ,\"'", min_size=1, max_size=6).map(lambda s: f"x{s}y"), st.integers(0, 999)))
@settings(deadline=None)
def test_what_csv_writes_is_read(labels: dict[str, int]) -> None:
    import csv
    from posixpath import normpath

    wanted = {normpath(name): label for name, label in labels.items()}
    with tempfile.TemporaryDirectory() as folder:
        with (Path(folder) / "labels.csv").open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([("file", "label"), *wanted.items()])
        tables = (LabelTable(path=Path(folder) / "labels.csv"),)
        assert read_labels(tables, set(wanted), Path(folder)) == wanted


def test_together() -> None:
    assert together(["one"], "heading") == "one"
    assert together(["one", "two"], "2 bad") == "2 bad:\n  one\n  two"
    many = together([str(index) for index in range(13)], "13 bad").splitlines()
    assert (len(many), many[-1]) == (12, "  … and 3 more")
