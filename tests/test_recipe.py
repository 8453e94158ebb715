"""Recipes: layers, origins, and errors that say where and what instead."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from qcli.errors import QcliError, UsageError
from qcli.recipe import Recipe, load_recipe, preset_names
from qcli.types import Role
from qcli.yaml_file import parse_yaml, read_yaml, write_yaml


def write(folder: Path, text: str, name: str = "own.yaml") -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def refused(folder: Path, text: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load_recipe(write(folder, text))
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_says_what_it_is(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.description and recipe.rules
    assert not any(rule.own for rule in recipe.rules)


def test_the_layers_come_lowest_first_and_rules_add_up(tmp_path: Path) -> None:
    write(tmp_path, "{version: 1, extends: int8, rules: [{match: {op: Conv}, range: minmax}]}", "base.yaml")
    top = write(tmp_path, "{version: 1, extends: base.yaml, rules: [{match: {op: Gemm}, keep: float}]}")
    recipe = load_recipe(top)
    assert [rule.origin for rule in recipe.rules][:1] == ["int8-minmax rules[0]"]
    assert [rule.origin for rule in recipe.rules][-2:] == ["base.yaml rules[0]", "own.yaml rules[0]"]
    assert [rule.own for rule in recipe.rules][-3:] == [False, True, True]
    assert recipe.name == "own" and recipe.prepare == load_recipe("int8").prepare


def test_what_is_said_last_counts_and_its_origin_is_known(tmp_path: Path) -> None:
    top = write(
        tmp_path,
        "{version: 1, extends: int8, description: mine, prepare: [normalize], "
        "samples: {calibration: {limit: 8}}, gates: ['size.ratio <= 0.3']}",
    )
    recipe = load_recipe(top, ["samples.calibration.limit=16", "finish=[]"])
    assert (recipe.description, recipe.prepare, recipe.samples.calibration.limit) == ("mine", ("normalize",), 16)
    assert recipe.origins == {
        "description": "own.yaml",
        "target": "int8-minmax",
        "prepare": "own.yaml",
        "finish": "--set",
        "samples.calibration.limit": "--set",
        "gates[size.ratio <= 0.3]": "own.yaml",
    }


def test_gates_of_all_layers_hold(tmp_path: Path) -> None:
    write(tmp_path, "{version: 1, extends: int8, gates: ['accuracy.sqnr >= 20']}", "base.yaml")
    recipe = load_recipe(write(tmp_path, "{version: 1, extends: base.yaml, gates: ['size.ratio <= 0.3']}"))
    assert recipe.gates == ("accuracy.sqnr >= 20", "size.ratio <= 0.3")


def test_a_circle_of_extends_is_broken(tmp_path: Path) -> None:
    write(tmp_path, "{version: 1, extends: b.yaml}", "a.yaml")
    path = write(tmp_path, "{version: 1, extends: a.yaml}", "b.yaml")
    with pytest.raises(UsageError, match="extends itself"):
        load_recipe(path)
    with pytest.raises(UsageError, match="extends itself"):
        load_recipe(write(tmp_path, "{version: 1, extends: self.yaml}", "self.yaml"))


def test_extends_is_relative_to_the_file_that_says_it(tmp_path: Path) -> None:
    write(tmp_path, "{version: 1, extends: int8, description: found}", "base/low.yaml")
    path = write(tmp_path, "{version: 1, extends: ../base/low.yaml}", "top/own.yaml")
    assert load_recipe(path).description == "found"


@pytest.mark.parametrize(
    ("text", "word", "hint"),
    [
        ("{version: 1, extnds: int8}", "extnds", "extends"),
        ("{version: 1, rules: [{match: {oper: Conv}}]}", "oper", "op"),
        ("{version: 1, rules: [{grid: {formt: int8}}]}", "formt", "format"),
        ("{version: 1, samples: {calibration: {pth: x}}}", "pth", "path"),
        ("{version: 1, rules: [{range: percentil}]}", "percentil", "percentile"),
        ("{version: 1, rules: [{rounding: nearst}]}", "nearst", "nearest"),
        ("{version: 1, rules: [{range: {percentile: {kep: 99}}}]}", "kep", "keep"),
        ("{version: 1, rules: [{grid: {format: int88}}]}", "int88", "int8"),
        ("{version: 1, prepare: [normalise]}", "normalise", "normalize"),
        ("{version: 1, target: ort_cpp}", "ort_cpp", "ort_cpu"),
        ("{version: 1, target: {ort_cpu: {ise: avx2}}}", "ise", "isa"),
        ("{version: 1, rules: [{encoding: qdqq}]}", "qdqq", "qdq"),
        ("{version: 1, extends: int9}", "int9", "int8"),
        ("{version: 1, rules: [{grid: {granularity: chanel}}]}", "chanel", "channel"),
    ],
)
def test_a_wrong_word_gets_a_suggestion(tmp_path: Path, text: str, word: str, hint: str) -> None:
    error = refused(tmp_path, text)
    assert f"'{word}'" in error.message and hint in error.hint


@pytest.mark.parametrize(
    "text",
    [
        "{version: one}",
        "{version: 1, rules: 7}",
        "{version: 1, rules: [7]}",
        "{version: 1, rules: [{match: {role: inputs}}]}",
        "{version: 1, rules: [{keep: double}]}",
        "{version: 1, rules: [{grid: {symmetric: maybe}}]}",
        "{version: 1, rules: [{grid: {bits: '8'}}]}",
        "{version: 1, samples: {calibration: null}}",
        "{version: 1, samples: [a]}",
        "{version: 1, samples: {calibration: {limit: many}}}",
        "{version: 1, gates: size}",
        "{version: 1, target: {ort_cpu: {}, onnx: {}}}",
        "{version: 1, target: {ort_cpu: {isa: sse}}}",
        "{version: 1, target: 3}",
        "{version: 1, rules: [{range: {fixed: {lower: 1, upper: 0}}}]}",
        "{version: 1, rules: [{range: {percentile: {keep: high}}}]}",
        "{version: 1, rules: [{range: {percentile: 99}}]}",
        "{version: 1, prepare: normalize}",
        "{rules: []}",
        "[1, 2]",
        "just text",
        "",
        "{version: 2}",
        "{version: 1, prepare: [{normalize: {fast: true}}]}",
    ],
)
def test_a_wrong_type_is_a_usage_error_that_names_the_recipe(tmp_path: Path, text: str) -> None:
    error = refused(tmp_path, text)
    assert error.hint


@pytest.mark.parametrize("key", ["target", "prepare", "finish", "samples", "extends"])
def test_a_key_left_empty_says_nothing(tmp_path: Path, key: str) -> None:
    recipe = load_recipe(write(tmp_path, f"version: 1\n{key}:\n"))
    assert recipe.target == "ort_cpu" and recipe.prepare == recipe.finish == ()
    below = load_recipe(write(tmp_path, f"version: 1\nextends: int8\n{key if key != 'extends' else 'finish'}:\n"))
    assert below.prepare == load_recipe("int8").prepare


def test_the_line_of_a_mistake_is_named(tmp_path: Path) -> None:
    assert "line 3" in refused(tmp_path, "version: 1\nrules: []\ntarget: a: b\n").message


def test_aliases_are_refused(tmp_path: Path) -> None:
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\nversion: 1\n"
    assert "aliases" in refused(tmp_path, bomb).message


def test_repeated_keys_are_refused(tmp_path: Path) -> None:
    assert "'version' stands twice" in refused(tmp_path, "version: 1\nversion: 1\n").message
    assert "stands twice" in refused(tmp_path, "{version: 1, rules: [{keep: float, keep: float}]}").message


@pytest.mark.parametrize(
    "text",
    ["!!python/object/apply:os.system ['true']", "!!int ''", "!!float ''", "!!bool maybe", "!!timestamp soon",
     "2020-13-45", "!!binary '%'", "? [a]\n: b", "[" * 3000, "\x00", "a: b: c", "!!set [1]", "!!omap [1]", "=",
     "<<: 3"],
)  # fmt: skip
def test_odd_yaml_is_a_usage_error_or_data(tmp_path: Path, text: str) -> None:
    refused(tmp_path, text)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="{}[]:,-!&*?<>=|%@ \n\t'\"#abt012.~", max_size=40))
def test_any_text_is_data_or_a_usage_error(text: str) -> None:
    try:
        parse_yaml(text, "text")
    except QcliError as error:
        assert error.exit_code == 2


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_bytes(b"\xff\xfe\x00version")
    with pytest.raises(UsageError, match="UTF-8"):
        load_recipe(str(tmp_path / "own.yaml"))


def test_a_folder_and_a_huge_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        load_recipe(str(tmp_path))
    (tmp_path / "own.yaml").write_bytes(b"#" * (5 << 20))
    with pytest.raises(UsageError, match="larger than"):
        load_recipe(str(tmp_path / "own.yaml"))


LETTERS = st.characters(codec="utf-8", exclude_characters="\x85")
"""All but NEL, which PyYAML writes as it is and reads as a line break."""

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(LETTERS, max_size=8))
DATA = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(LETTERS, max_size=5), inner, max_size=3)
    ),
)


@settings(max_examples=200, deadline=None)
@given(DATA)
def test_what_is_written_is_read_again(data: object) -> None:
    assert parse_yaml(write_yaml(data), "text") == data


def test_write_yaml_is_what_any_yaml_reader_reads(tmp_path: Path) -> None:
    data = {"a": [1, 2.5, "no", "y", "1e3"], "b": {"c": None, "größe": True}}
    (tmp_path / "x.yaml").write_text(write_yaml(data), encoding="utf-8")
    assert yaml.safe_load(write_yaml(data)) == data == read_yaml(tmp_path / "x.yaml", "file")


def test_settings_go_on_top() -> None:
    recipe = load_recipe(
        "int8", ["target={ort_cpu: {isa: avx2}}", "samples.validation.path=eval", "prepare=[normalize]"]
    )
    assert recipe.target == {"ort_cpu": {"isa": "avx2"}}
    assert recipe.samples.validation.path == "eval" and recipe.prepare == ("normalize",)


def test_rules_can_be_set() -> None:
    recipe = load_recipe("int8", ["rules=[{match: {role: weight}, range: minmax}]"])
    assert recipe.rules[-1].origin == "--set rules[0]" and recipe.rules[-1].rule.match.role is Role.WEIGHT


@pytest.mark.parametrize(
    "setting",
    ["", "=3", "limit", "samples.calibration.limt=3", "nothing.at.all=1", "prepare=[", "version.x=1", "a..b=1",
     "samples.calibration.limit=abc"],
)  # fmt: skip
def test_a_wrong_setting_is_named(setting: str) -> None:
    with pytest.raises(UsageError, match="--set"):
        load_recipe("int8", [setting])


def test_sample_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "{version: 1, samples: {calibration: {path: calib/, labels: l.csv}, validation: {path: /eval}}}",
        "a/own.yaml",
    )
    samples = load_recipe(path).samples
    assert Path(samples.calibration.path or "") == tmp_path / "a" / "calib"
    assert Path(samples.calibration.labels or "") == tmp_path / "a" / "l.csv"
    assert samples.validation.path == "/eval"


def test_sample_keys_of_several_layers_join(tmp_path: Path) -> None:
    write(tmp_path, "{version: 1, samples: {calibration: {path: calib/, limit: 9}}}", "low/base.yaml")
    top = write(tmp_path, "{version: 1, extends: low/base.yaml, samples: {calibration: {limit: 3}}}")
    source = load_recipe(top).samples.calibration
    assert (Path(source.path or ""), source.limit) == (tmp_path / "low" / "calib", 3)


def sha(folder: Path, text: str) -> str:
    recipe: Recipe = load_recipe(write(folder, text))
    return recipe.sha256


def test_the_digest_is_of_what_is_said_not_of_how_or_where(tmp_path: Path) -> None:
    first = sha(tmp_path / "a", "version: 1\nextends: int8\nsamples: {calibration: {path: x}}  # a comment\n")
    assert first == sha(tmp_path / "b", "{extends: int8, version: 1, description: other}")
    assert first != sha(tmp_path / "c", "{extends: int8, version: 1, prepare: []}")
    assert len(first) == 64


def test_an_unknown_preset_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match="int8-minmaxx") as caught:
        load_recipe("int8-minmaxx")
    assert caught.value.hint == "did you mean 'int8-minmax'?"
