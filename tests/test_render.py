from __future__ import annotations

import io
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from qcli.amendments import FallbackFacts, ReturnedPart
from qcli.errors import UsageError
from qcli.render import report_writer, show_report, summary, to_html, to_junit, to_markdown, write_report
from qcli.report import (
    Accuracy,
    FileFacts,
    FloatNode,
    GateResult,
    KernelFacts,
    LatencyFacts,
    OutputAccuracy,
    Report,
    Scores,
    Seconds,
    Size,
)

_characters = st.characters(exclude_categories=("Cs", "Cc"))

NASTY = "a|b <script>alert(1)</script> [bold]x[/bold] `c` & \"d\" 'e' *f* _g_"


def facts(path: str) -> FileFacts:
    return FileFacts(path=path, sha256="0" * 64, bytes=100, opset=17, nodes=3, parameters=12)


def full(name: str = "model.onnx") -> Report:
    return Report(
        command="validate",
        status="failed",
        model=facts(name),
        output=facts(f"{name}.int8"),
        size=Size(float_bytes=242151, bytes=70000, ratio=70000 / 242151),
        accuracy=Accuracy(
            sqnr=26.13,
            cosine=0.998785,
            agreement=0.9972,
            top1=Scores(float_=0.9944, quantized=0.9889, drop=0.0055),
            top5=Scores(float_=1.0, quantized=1.0, drop=0.0),
            outputs={"logits": OutputAccuracy(sqnr=26.13), "ids": OutputAccuracy(equal=0.5)},
        ),
        kernels=KernelFacts(
            integer=7,
            float_=1,
            integer_share=0.9999,
            by_kernel={"QLinearConv": 7, "Gemm": 1},
            kept_float=(FloatNode(node=name, op="Gemm", reason=name, mac_share=0.0001),),
        ),
        latency=LatencyFacts(float_ms=2.0, ms=1.0, speedup=2.0, threads=1),
        gates=(
            GateResult(gate="size.ratio <= 0.3", value=0.289, passed=True),
            GateResult(gate="accuracy.top1.drop <= 0.001", value=0.0055, passed=False),
        ),
        warnings=(f"careful: {name}",),
        seconds=Seconds(total=1.25),
    )


def with_fallback(name: str = "/conv", **changes: object) -> Report:
    fallback = FallbackFacts(
        met=True,
        returned=1,
        of=10,
        parts=(ReturnedPart(node=name, op="Conv", nodes=(name,), now="float"),),
        sqnr_before=17.04,
        sqnr_after=25.0,
        drop_before=0.02,
        drop_after=0.0,
        samples=50,
        held_out=True,
        tried=4,
    )
    return msgspec.structs.replace(full(), fallback=msgspec.structs.replace(fallback, **changes))


def shown(report: Report, **options: object) -> str:
    stream = io.StringIO()
    show_report(report, Console(file=stream, width=120, **options))  # type: ignore[arg-type]
    return stream.getvalue()


class Cells(HTMLParser):
    """The tags of a page, and the text of its cells."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []
        self._inside = False
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag in ("td", "li"):
            self.cells.append("")
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("td", "li")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.cells[-1] += data


def test_a_fallback_is_shown_with_its_parts() -> None:
    row = dict(summary(with_fallback()))["fallback"]
    assert row == (
        "kept, 1 of 10 parts in float: 17.0 → 25.0 dB, drop 0.0200 → 0.0000 on 50 held-out calibration samples"
    )
    page = to_markdown(with_fallback()).decode()
    assert "## Fallback" in page and "| `/conv` | Conv | float |" in page
    cells = Cells(to_html(with_fallback())).cells
    first = cells.index("/conv")
    assert cells[first : first + 3] == ["/conv", "Conv", "float"]
    assert b"fallback: kept" in to_junit(with_fallback())
    assert "## Fallback" not in to_markdown(full()).decode()


def test_a_fallback_that_is_not_kept_or_changes_nothing() -> None:
    nothing = with_fallback(returned=0, of=None, parts=(), drop_before=None, drop_after=None, held_out=False)
    assert dict(summary(nothing))["fallback"] == "kept, nothing went back: 17.0 → 25.0 dB on 50 calibration samples"
    wide = ReturnedPart(node="n", op="Gemm", nodes=("n",), now="wider")
    row = dict(summary(with_fallback(met=False, parts=(wide,))))["fallback"]
    assert row.startswith("NOT kept, 1 of 10 parts with weights of 8 bits: ")


def test_names_of_parts_are_no_markup() -> None:
    page = Cells(to_html(with_fallback(NASTY)))
    assert NASTY in page.cells and "script" not in page.tags


def test_the_table_holds_the_figures() -> None:
    text = shown(full())
    for part in (
        "model.onnx", "242,151 → 70,000 bytes (0.289)", "26.1 dB SQNR, cosine 0.99879",
        "0.9944 → 0.9889 (drop 0.0055)", "FAILED  accuracy.top1.drop",
        "99.7 % with the float model's top-1", "7 integer, 1 float; >99.9 % of the work on integers",
        "2.000 → 1.000 ms (2.00x, 1 thread)", "passed  size.ratio <= 0.3  (is 0.289)",
        "50.0 % of the values of outputs that are not float", "1.2 s",
    ):  # fmt: skip
        assert part in text


def test_the_table_is_short() -> None:
    assert len(shown(full()).splitlines()) <= 14


def test_a_table_for_a_file_has_no_escape_codes_and_one_for_a_terminal_has() -> None:
    assert "\x1b" not in shown(full())
    assert "\x1b[" in shown(full(), force_terminal=True)


def test_names_are_not_markup() -> None:
    assert "[bold]x[/bold]" in shown(full(NASTY))


def test_what_was_not_measured_is_left_out() -> None:
    assert list(summary(Report(command="plan"))) == []
    assert shown(Report(command="plan")).strip() == ""
    only_size = Report(command="x", size=Size(float_bytes=10, bytes=5, ratio=0.5))
    assert [key for key, _ in summary(only_size)] == ["size"]


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100.0 %"), (0.99999, ">99.9 %"), (0.5, "50.0 %"), (0.00001, "<0.1 %"), (0.0, "0.0 %")],
)
def test_shares_are_never_rounded_to_all_or_to_nothing(share: float, text: str) -> None:
    kernels = KernelFacts(integer=1, float_=1, integer_share=share, by_kernel={})
    assert dict(summary(Report(command="x", kernels=kernels)))["kernels"].endswith(f"; {text} of the work on integers")


@given(name=st.text(st.sampled_from("a1 |\\`*_[]<>#&;~!-+.()\"'$:/é") | _characters, min_size=1, max_size=30))
@example("&lt;b&gt;")
@example("a\\|b")
@example("~~a~~ ``b`")
@example(NASTY)
def test_markdown_shows_any_name_as_it_is(name: str) -> None:
    page = MarkdownIt().enable("table").render(to_markdown(full(name)).decode())
    cells = Cells(page.encode()).cells
    plain = " ".join(name.split())
    assert "<script" not in page
    assert sum(" ".join(cell.split()) == plain for cell in cells) >= 3 or not plain, "model, node and reason"
    rows = page.count("<tr>")
    assert rows == MarkdownIt().enable("table").render(to_markdown(full("m")).decode()).count("<tr>")


def test_markdown_has_gates_float_nodes_and_warnings() -> None:
    text = to_markdown(full()).decode()
    assert text.startswith("# qcli validate: failed\n")
    assert "| `size.ratio <= 0.3` | 0.289 | passed |" in text
    assert "| `model.onnx` | Gemm | <0.1 % |" in text
    assert "* careful: model.onnx" in text


@given(name=st.text(_characters, min_size=1, max_size=30))
def test_html_shows_any_name_as_it_is(name: str) -> None:
    cells = Cells(to_html(full(name))).cells
    assert name in cells


def test_html_is_one_page_without_scripts_or_links() -> None:
    page = to_html(full(NASTY))
    tags = set(Cells(page).tags)
    assert tags <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "table",
        "tr",
        "th",
        "td",
        "p",
        "ul",
        "li",
    }
    assert b"http" not in page
    assert b'<h1 class="failed">' in page


def test_long_lists_of_float_nodes_are_cut_and_say_so() -> None:
    kept = tuple(FloatNode(node=f"n{index}", op="Conv", reason="r", mac_share=index / 100) for index in range(25))
    kernels = KernelFacts(integer=0, float_=25, integer_share=0.0, by_kernel={}, kept_float=kept)
    report = Report(command="x", kernels=kernels)
    for page in (to_markdown(report).decode(), to_html(report).decode()):
        assert "and 5 more" in page
        assert "n24" in page
        assert ">n4<" not in page
        assert "`n4`" not in page


def test_junit_has_a_case_for_the_run_and_one_for_each_gate() -> None:
    root = ElementTree.fromstring(to_junit(full()))
    cases = root.findall("testsuite/testcase")
    assert [case.get("name") for case in cases] == ["run", "size.ratio <= 0.3", "accuracy.top1.drop <= 0.001"]
    assert [case.get("classname") for case in cases] == ["qcli.validate"] * 3
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("3", "1", "0")
    assert cases[0].get("time") == "1.250"
    assert [case.find("failure") is not None for case in cases] == [False, False, True]
    failure = cases[2].find("failure")
    assert failure is not None
    assert failure.get("message") == "accuracy.top1.drop <= 0.001 failed: the value is 0.0055"


@given(name=st.text())
def test_junit_is_xml_whatever_the_names(name: str) -> None:
    ElementTree.fromstring(to_junit(full(name.encode("utf-8", "replace").decode())))


@pytest.mark.parametrize(
    ("suffix", "begin"),
    [(".json", b"{"), (".md", b"# qcli"), (".html", b"<!doctype"), (".xml", b"<?xml"), (".JSON", b"{")],
)
def test_the_suffix_names_the_format(suffix: str, begin: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"report{suffix}"
    write_report(full(), path)
    content = path.read_bytes()
    assert content.startswith(begin)
    assert content.endswith(b"\n")
    write_report(full(), path)
    assert path.read_bytes() == content, "the same report, the same bytes"
    assert list(tmp_path.iterdir()) == [path]


def test_json_reads_back(tmp_path: Path) -> None:
    write_report(full(NASTY), tmp_path / "r.json")
    assert msgspec.json.decode((tmp_path / "r.json").read_bytes(), type=Report) == full(NASTY)


@pytest.mark.parametrize("name", ["report.txt", "report", "report.json.gz"])
def test_another_suffix_is_a_usage_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown format") as caught:
        report_writer(tmp_path / name)
    assert caught.value.hint == "the suffix is one of .json .md .html .xml"


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        write_report(full(), tmp_path / "none" / "r.json")
