"""Recipes as a user meets them: the presets, the schema, one to start from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec

from qcli.files import check_distinct, check_writable, replace_file
from qcli.gates import check_gates
from qcli.graph import load_model
from qcli.recipe import Recipe, RecipeFile, load_recipe, preset_names
from qcli.types import Noun

_STARTER = """\
# {title}
# Try it:   qcli plan MODEL -r THIS_FILE
# All keys: qcli recipe schema        What it comes to: qcli recipe show THIS_FILE
version: 1
extends: int8            # a preset (qcli recipe list) or a path; what stands below wins

# samples:               # paths are relative to this file
#   calibration: {{path: calib/, limit: 256}}      # for images also: preprocess: imagenet
#   validation: {{path: eval/}}                    # with a labels.csv: top-1 and top-5

# rules:                 # the last rule that says something about a site counts
#   - {{match: {{role: input}}, range: {{percentile: {{keep: 99.999}}}}}}
{rules}

# gates:                 # conditions on the report; the exit code is 1 if one fails
#   - accuracy.top1.drop <= 0.01
#   - size.ratio <= 0.30
"""

_MOST_LAYERS = 4


class Preset(Noun, frozen=True, kw_only=True):
    name: str
    description: str


class Presets(Noun, frozen=True, kw_only=True):
    """The recipes that come with qcli."""

    presets: tuple[Preset, ...]


def presets() -> Presets:
    """Every preset with its description."""
    return Presets(
        presets=tuple(Preset(name=name, description=load_recipe(name).description) for name in preset_names())
    )


def check_recipe(name: str, settings: tuple[str, ...] = ()) -> Recipe:
    """A recipe whose gates were checked as well. Raises UsageError for the first thing that is wrong."""
    recipe = load_recipe(name, settings)
    check_gates(recipe.gates)
    return recipe


def recipe_schema() -> bytes:
    """The JSON schema of a recipe file."""
    schema = msgspec.json.encode(msgspec.json.schema(RecipeFile))
    return msgspec.json.format(schema, indent=2) + b"\n"


def write_starter(model: Path | None = None, output: Path | None = None) -> str:
    """A commented recipe, which mentions the model's own layers if a model is given.

    Written to `output` if that is given, and "" returned; else returned.
    """
    if output is not None:
        check_distinct([output], [model] if model is not None else [])
    text = starter(model)
    if output is None:
        return text
    check_writable(output)
    replace_file(output, text.encode())
    return ""


def starter(model: Path | None) -> str:
    """The text of a recipe to start from. Raises as `load_model` does."""
    if model is None:
        example = '#   - {match: {name: "/head/*"}, keep: float}'
        return _STARTER.format(title="A recipe for qcli.", rules=example)
    from qcli.layers import LAYERS

    graph = load_model(model)
    layers = [node for node in graph.nodes() if node.op_type in LAYERS]
    counted = Counter(node.op_type for node in layers)
    counts = ", ".join(f"{count} {op}" for op, count in counted.most_common()) or "no layers with weights"
    edges = dict.fromkeys(node.name or "" for node in (*layers[:2], *layers[-2:]) if node.name)
    names = list(edges)[:_MOST_LAYERS]
    lines = [f"#   - {{match: {{name: {_quoted(name)}}}, keep: float}}" for name in names]
    title = f"A recipe for {_one_line(model.name)}: {counts}. The first and last are often the sensitive ones."
    return _STARTER.format(title=title, rules="\n".join(lines) or "#   - {match: {op: Conv}, keep: float}")


def _quoted(name: str) -> str:
    """A node's name as JSON, which is YAML too."""
    return msgspec.json.encode(name).decode()


def _one_line(text: str) -> str:
    return " ".join(text.split())
