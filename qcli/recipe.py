"""Recipes: YAML files that say what to do, layered by `extends`, with the origin of every value."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from qcli.configure import convert
from qcli.conversion import Convert, check_convert
from qcli.errors import UsageError, did_you_mean
from qcli.files import is_there
from qcli.granularity import check_layout
from qcli.plugins import choice_of, create
from qcli.targets._support import traits_of
from qcli.types import Noun, Rule, Spec
from qcli.yaml_file import parse_yaml, read_yaml

_VERSION = 1
_MAX_DEPTH = 16


class SampleSource(Noun, frozen=True, kw_only=True):
    """Where samples lie; `path` is relative to the recipe's folder. `limit` takes that many, evenly spread."""

    path: str | None = None
    limit: int | None = None
    preprocess: str | dict[str, Any] | None = None
    labels: str | None = None


class SampleSources(Noun, frozen=True, kw_only=True):
    """The samples that ranges are learned from and those that the result is judged by."""

    calibration: SampleSource = SampleSource()
    validation: SampleSource = SampleSource()


class Fallback(Noun, frozen=True, kw_only=True):
    """What the result has to keep; while it does not, parts go back to float. Without a limit it is switched off.

    `max_drop` is the loss of top-1 accuracy, or without labels the share of samples with another first choice.
    `min_sqnr` is the ratio in dB of the worst output. At most `max_parts` go back: a number, or a share below 1.
    """

    max_drop: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    min_sqnr: Annotated[float, msgspec.Meta(gt=0, le=200)] | None = None
    max_parts: Annotated[int, msgspec.Meta(ge=1)] | Annotated[float, msgspec.Meta(gt=0, lt=1)] | None = None

    @property
    def limits(self) -> str:
        """The limits as they are written, `max_drop 0.01`."""
        named = (("max_drop", self.max_drop), ("min_sqnr", self.min_sqnr))
        return ", ".join(f"{name} {value:g}" for name, value in named if value is not None)


class Mixed(Noun, frozen=True, kw_only=True):
    """Weights of several widths. Without a `target_bpw`, bits a weight with its scales, it is switched off."""

    target_bpw: Annotated[float, msgspec.Meta(gt=0, le=64)] | None = None
    widths: tuple[Annotated[int, msgspec.Meta(ge=1, le=8)], ...] = (2, 4, 8)


class RecipeFile(Noun, frozen=True, kw_only=True):
    """One recipe file as written."""

    version: int
    description: str = ""
    extends: str | None = None
    target: Spec | None = None
    samples: SampleSources | None = None
    prepare: tuple[Spec, ...] | None = None
    rules: tuple[Rule, ...] = ()
    finish: tuple[Spec, ...] | None = None
    fallback: Fallback | None = None
    convert: Convert | None = None
    mixed: Mixed | None = None
    gates: tuple[str, ...] = ()


class SourcedRule(Noun, frozen=True, kw_only=True):
    """A rule and where it stands, e.g. `int8 rules[0]`. `own` rules are the user's: each must match something."""

    rule: Rule
    origin: str
    own: bool


class Recipe(Noun, frozen=True, kw_only=True):
    """A resolved recipe: all layers joined. `origins` says for each key which layer it came from."""

    name: str
    sha256: str
    description: str
    target: Spec
    samples: SampleSources
    prepare: tuple[Spec, ...]
    rules: tuple[SourcedRule, ...]
    finish: tuple[Spec, ...]
    fallback: Fallback | None = None
    convert: Convert | None = None
    mixed: Mixed | None = None
    gates: tuple[str, ...]
    origins: dict[str, str]


class _Layer(Noun, frozen=True, kw_only=True):
    label: str
    own: bool
    data: dict[str, Any]
    file: RecipeFile
    path: Path | None = None


def preset_names() -> tuple[str, ...]:
    """The recipes that come with qcli."""
    return tuple(sorted(item.stem for item in _preset_folder().glob("*.yaml")))


def _preset_folder() -> Path:
    """Inside the package when installed, beside it in a checkout."""
    package = Path(__file__).parent
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


def load_recipe(name: str, settings: Sequence[str] = ()) -> Recipe:
    """A recipe by preset name or path, with `key=value` settings on top.

    Raises UsageError for an unknown preset, invalid YAML, an unknown key, a wrong type or a circle of `extends`.
    """
    layers = _load_layers(name, None, 0)
    if settings:
        layers.append(_settings_layer(settings))
    recipe = _join(name, layers)
    _check_plugins(recipe)
    return recipe


def recipe_files(name: str) -> tuple[Path, ...]:
    """The files that a recipe is read from, those that it extends included; presets belong to qcli."""
    return tuple(layer.path for layer in _load_layers(name, None, 0) if layer.path is not None)


def _load_layers(name: str, beside: Path | None, depth: int) -> list[_Layer]:
    if depth > _MAX_DEPTH:
        raise UsageError(f"recipe '{name}' extends itself", "break the circle of 'extends'")
    data, label, folder = _read(name, beside)
    if not isinstance(data, dict):
        raise UsageError(f"recipe '{name}' is not a mapping", "begin with 'version: 1'")
    file = convert(data, RecipeFile, where=f"recipe '{label}'")
    if file.version != _VERSION:
        raise UsageError(f"recipe '{label}' has version {file.version}", f"this qcli reads version {_VERSION}")
    if folder is not None:
        data = _anchored(data, folder)
        file = convert(data, RecipeFile, where=f"recipe '{label}'")
    below = _load_layers(file.extends, folder, depth + 1) if file.extends else []
    return [*below, _Layer(label=label, own=folder is not None, data=data, file=file, path=folder and folder / label)]


def _read(name: str, beside: Path | None) -> tuple[Any, str, Path | None]:
    """The data of a recipe, its label, and its folder (None for a preset)."""
    if name in preset_names():
        return read_yaml(_preset_folder() / f"{name}.yaml", "recipe"), name, None
    path = (beside / name) if beside is not None else Path(name)
    if not is_there(path):
        hint = did_you_mean(name, preset_names())
        raise UsageError(f"no preset and no file is called '{name}'", hint)
    return read_yaml(path, "recipe"), path.name, path.parent


def _anchored(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Sample paths relative to the recipe's folder become relative to the current one."""
    anchored = dict(data)
    if isinstance(data.get("samples"), dict):
        anchored["samples"] = {key: dict(source) for key, source in data["samples"].items()}
        for source in anchored["samples"].values():
            for key in ("path", "labels"):
                if isinstance(source.get(key), str):
                    source[key] = str(folder / source[key])
    return anchored


def _settings_layer(settings: Sequence[str]) -> _Layer:
    data: dict[str, Any] = {"version": _VERSION}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {setting}: expected key=value", "for example --set samples.calibration.limit=64")
        value = parse_yaml(text, f"--set {key}")
        _set(data, key.split("."), value, key)
    return _Layer(label="--set", own=True, data=data, file=convert(data, RecipeFile, where="--set"))


def _set(data: dict[str, Any], path: list[str], value: Any, key: str) -> None:
    for part in path[:-1]:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise UsageError(f"--set {key}: '{part}' is no mapping", "see 'qcli recipe schema'")
    data[path[-1]] = value


def _join(name: str, layers: list[_Layer]) -> Recipe:
    origins: dict[str, str] = {}
    samples: dict[str, dict[str, Any]] = {"calibration": {}, "validation": {}}
    for layer in layers:
        for key in ("description", "target", "prepare", "finish"):
            if layer.data.get(key) is not None:
                origins[key] = layer.label
        for kind, source in (layer.data.get("samples") or {}).items():
            samples[kind].update(source)
            origins.update({f"samples.{kind}.{key}": layer.label for key in source})
        for key in ("fallback", "convert", "mixed"):
            origins.update({f"{key}.{part}": layer.label for part in layer.data.get(key) or ()})
        origins.update({f"gates[{gate}]": layer.label for gate in layer.file.gates})
    rules = tuple(
        SourcedRule(rule=rule, origin=f"{layer.label} rules[{index}]", own=layer.own)
        for layer in layers
        for index, rule in enumerate(layer.file.rules)
    )
    return Recipe(
        name=Path(name).stem if name not in preset_names() else name,
        sha256=_digest(layers),
        description=_last(layers, "description", ""),
        target=_last(layers, "target", "ort_cpu"),
        samples=convert(samples, SampleSources, where="recipe samples"),
        prepare=_last(layers, "prepare", ()),
        rules=rules,
        finish=_last(layers, "finish", ()),
        fallback=_fallback(layers),
        convert=_conversion(layers),
        mixed=_mixed(layers),
        gates=tuple(gate for layer in layers for gate in layer.file.gates),
        origins=origins,
    )


def _last(layers: list[_Layer], key: str, default: Any) -> Any:
    stated = [getattr(layer.file, key) for layer in layers if layer.data.get(key) is not None]
    return stated[-1] if stated else default


def _fallback(layers: list[_Layer]) -> Fallback | None:
    found = convert(_stated(layers, "fallback"), Fallback, where="recipe fallback")
    if found == Fallback():
        return None
    if not found.limits:
        hint = "add max_drop, as in {max_drop: 0.01}, or min_sqnr, in dB"
        raise UsageError("recipe fallback: there is no limit to keep", hint)
    return found


def _conversion(layers: list[_Layer]) -> Convert | None:
    found = convert(_stated(layers, "convert"), Convert, where="recipe convert")
    if found == Convert():
        return None
    check_convert(found)
    return found


def _mixed(layers: list[_Layer]) -> Mixed | None:
    found = convert(_stated(layers, "mixed"), Mixed, where="recipe mixed")
    if not found.widths or 1 in found.widths:
        hint = "a width of 1 holds zero and one more level, too few for a weight; take 2 or more"
        raise UsageError(f"recipe mixed: widths must be 2 to 8, are {list(found.widths)}", hint)
    return found if found.target_bpw is not None else None


def _stated(layers: list[_Layer], key: str) -> dict[str, Any]:
    """What all layers say under a key; an empty mapping there switches off what stands below it."""
    stated: dict[str, Any] = {}
    for layer in layers:
        own = layer.data.get(key)
        stated = {**stated, **own} if own else stated if own is None else {}
    return stated


def with_rules(recipe: Recipe, rules: Sequence[Rule], origin: str) -> Recipe:
    """The recipe with rules on top, which need not match anything."""
    added = (SourcedRule(rule=rule, origin=origin, own=False) for rule in rules)
    return msgspec.structs.replace(recipe, rules=(*recipe.rules, *added))


def _digest(layers: list[_Layer]) -> str:
    """Of what the recipe says, not of its comments or of where its samples lie."""
    unsaid = ("samples", "description")
    said = [{key: value for key, value in layer.data.items() if key not in unsaid} for layer in layers]
    return hashlib.sha256(msgspec.json.encode(said, order="deterministic")).hexdigest()


def _check_plugins(recipe: Recipe) -> None:
    """Every plug-in that the recipe names exists and takes the options given."""
    create("targets", recipe.target)
    _check_steps(recipe)
    for sourced in recipe.rules:
        rule = sourced.rule
        for kind, named in (("ranges", rule.range), ("roundings", rule.rounding), ("encodings", rule.encoding)):
            if named is not None:
                create(kind, named)
        if rule.grid is not None:
            check_layout(rule.grid, sourced.origin)
            create("formats", rule.grid.format)


def _check_steps(recipe: Recipe) -> None:
    target = choice_of(recipe.target).name
    domains = traits_of(create("targets", recipe.target)).domains
    for kind, specs in (("prepare", recipe.prepare), ("finish", recipe.finish)):
        for spec in specs:
            step = create("steps", spec)
            if domains is not None and step.domain not in domains:
                problem = f"step '{choice_of(spec).name}' makes operators of '{step.domain}'"
                hint = f"leave it out of 'prepare', or begin with a preset for '{target}' ('qcli recipe list')"
                raise UsageError(f"{problem}, which the target '{target}' lacks", hint)
            finishes = step.finishes
            if finishes is not (kind == "finish"):
                other = "finish" if finishes else "prepare"
                problem = f"step '{choice_of(spec).name}' stands under '{kind}', where it cannot run"
                raise UsageError(problem, f"put it under '{other}'")
