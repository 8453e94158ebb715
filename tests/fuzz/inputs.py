"""Recipes, plans and samples with something wrong with them, or only something odd."""

from __future__ import annotations

import copy
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from onnx import numpy_helper
from PIL import Image

from fuzz.models import mutated_bytes

Choice = random.Random

_RECIPE: dict[str, Any] = {
    "version": 1,
    "description": "a recipe",
    "extends": "int8",
    "target": {"ort_cpu": {"isa": "avx2"}},
    "samples": {"calibration": {"path": "calib", "limit": 4, "preprocess": "unit"}, "validation": {"path": "calib"}},
    "prepare": ["normalize", {"fold_constants": {"limit_bytes": 1024}}, "fold_batchnorm", "equalize"],
    "rules": [
        {"match": {"role": "input"}, "range": {"percentile": {"keep": 99.9}}},
        {
            "match": {"role": "weight"},
            "grid": {"format": "int8", "symmetric": True, "granularity": "channel", "bits": 7, "narrow": True},
            "range": "mse",
            "rounding": "squant",
        },
        {"match": {"op": ["Softmax"], "name": "/c*", "from": "/a", "to": "/y"}, "keep": "float"},
        {"match": {"role": "output"}, "range": {"fixed": {"lower": -1, "upper": 3.5}}},
    ],
    "gates": ["accuracy.sqnr > -500", "size.ratio <= 30"],
}

_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2**63,
    10**30,
    0.5,
    float("nan"),
    float("inf"),
    -1e308,
    "",
    "x",
    "int8",
    "int8-entropy",
    "minmax",
    "entropy",
    "mse",
    "channel",
    "uint8",
    "int4",
    "../..",
    "\0",
    "ü",
    "n" * 5000,
    [],
    {},
    [[]],
    {"a": {"b": 1}},
    [1, "a"],
    {"fixed": {"lower": 3, "upper": 1}},
    {"entropy": {"levels": 1}},
    {"percentile": {"keep": 0}},
    "/*",
    "[",
    "**",
    {"minmax": None},
    {"percentile": None},
    {"a": None, "b": None},
    "2024-01-01",
    b"bytes",
)
_KEYS = (
    "version",
    "rules",
    "match",
    "range",
    "grid",
    "keep",
    "x",
    "",
    "rulez",
    "samples",
    "op",
    "name",
    "bits",
    3,
    None,
)
_TEXTS = (
    "&a [*a]",
    "a: &a [1]\nb: *a",
    "!!python/object:os.system {}",
    "%YAML 9.9",
    "---\n---\n",
    "\t",
    "? [a]\n: b",
    "!!binary xxx",
    "!!set {a, b}",
    "<<: {version: 1}",
    "version: 1\nversion: 1",
    "1:1:1:1",
    "0x",
    "!!int ''",
    "[" * 3000,
    "- " * 3000,
    "a: " * 500,
    "{" * 500,
    "\ufeffversion: 1",
    "\x85",
    "\ud83d",
    "!!float x",
    "!!timestamp 1",
    "= 3",
)


def mutated_recipe(choice: Choice) -> str | bytes:
    """The text of a recipe, valid or not."""
    what = choice.randrange(8)
    text = yaml.safe_dump(changed(_RECIPE, choice, choice.choice((1, 1, 2, 4))), sort_keys=False)
    if what == 0:
        return mutated_bytes(text.encode(), choice, b"- {a: [b, *c], &d e: !f g}\n")
    if what == 1:
        line = choice.choice(_TEXTS)
        return (text + line if choice.random() < 0.5 else line + "\n" + text).encode("utf-8", "surrogatepass")
    return text


def mutated_plan(text: str, choice: Choice) -> str:
    """A plan in which values, types or keys were changed, or entries were repeated."""
    plan = yaml.safe_load(text)
    if choice.random() < 0.3 and plan["entries"]:
        entry = choice.choice(plan["entries"])
        entry["grid"] = {**entry.get("grid", {}), "axis": choice.choice((0, 1, 2, 3, -1, 9)), "granularity": "channel"}
        return yaml.safe_dump(plan)
    if choice.random() < 0.2 and plan["entries"]:
        plan["entries"].append(copy.deepcopy(choice.choice(plan["entries"])))
        return yaml.safe_dump(plan)
    if choice.random() < 0.2 and plan["entries"]:
        plan["entries"].remove(choice.choice(plan["entries"]))
        return yaml.safe_dump(plan)
    return yaml.safe_dump(changed(plan, choice, choice.choice((1, 1, 2))))


def changed(data: Any, choice: Choice, times: int) -> Any:
    """Plain data with a few of its values, keys or items replaced, dropped or repeated."""
    made = yaml.safe_load(yaml.safe_dump(data))
    for _ in range(times):
        holder, key = choice.choice(list(_places(made)))
        what = choice.randrange(5)
        if what == 0:
            del holder[key]
        elif what == 1 and isinstance(holder, dict):
            holder[choice.choice(_KEYS)] = holder.pop(key)
        elif what == 2 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        else:
            holder[key] = copy.deepcopy(choice.choice(_VALUES))  # what follows may change it
        if not list(_places(made)):
            break
    return made


def _places(data: Any) -> Any:
    """(container, key) of everything that can be changed."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in list(items):
        yield data, key
        yield from _places(value)


# Samples

_DTYPES = ("float32", "float64", "float16", "int64", "int8", "uint8", "bool", "complex64", "U3", ">f4", "M8[s]")
_STRANGE_NUMBERS = (np.nan, np.inf, -np.inf, 3.4e38, 0.0, 1e-45)


def sample_array(shape: list[int], dtype: str, choice: Choice) -> Any:
    """An array for an input of this shape, with one thing changed."""
    array = np.random.default_rng(choice.randrange(9)).standard_normal(shape).astype(dtype)
    what = choice.randrange(8)
    if what == 0:
        with np.errstate(all="ignore"):
            return array.astype(choice.choice(_DTYPES))
    if what == 1:
        return array[choice.choice((None, Ellipsis, slice(0, 0), 0 if array.ndim else None))]
    if what == 2 and array.size:
        array.reshape(-1)[choice.randrange(array.size)] = choice.choice(_STRANGE_NUMBERS)
    if what == 3:
        return array.T
    if what == 4:
        return np.concatenate([array, array], axis=choice.randrange(array.ndim)) if array.ndim else array
    if what == 5:
        return array * np.float32(choice.choice((0, 1e30, -1e-30)))
    return array


def write_samples(folder: Path, inputs: dict[str, tuple[list[int], str]], choice: Choice) -> None:
    """A folder of one to four samples, some of them damaged."""
    folder.mkdir()
    for index in range(choice.randrange(1, 5)):
        arrays = {name: sample_array(shape, dtype, choice) for name, (shape, dtype) in inputs.items()}
        _write_one(folder, index, arrays, choice)
    if choice.random() < 0.3:
        rows = [f"{choice.randrange(4)}.npz,{choice.choice((0, 1, 2, 99, -1, 'cat', ''))}" for _ in range(3)]
        (folder / "labels.csv").write_text("\n".join([choice.choice(("file,label", "file,label", "a,b", "")), *rows]))


def _write_one(folder: Path, index: int, arrays: dict[str, Any], choice: Choice) -> None:
    kind = choice.choice(("npz", "npz", "npz", "npy", "png", "pb"))
    content = io.BytesIO()
    if kind == "npz":
        extra = (
            {choice.choice(("label", "z")): np.array(choice.choice((0, 3, -1, 1.5)))} if choice.random() < 0.2 else {}
        )
        save = choice.choice((np.savez, np.savez_compressed))
        save(content, allow_pickle=False, **{**arrays, **extra})
    elif kind == "npy":
        np.save(content, next(iter(arrays.values()), np.zeros(1)), allow_pickle=False)
    elif kind == "png":
        mode = choice.choice(("L", "RGB", "1", "I;16", "RGBA", "P"))
        image = Image.new(mode, (choice.randrange(1, 9), choice.randrange(1, 9)))
        image.save(content, "PNG")
    else:
        array = next(iter(arrays.values()), np.zeros(1, np.float32))
        kept = array if array.dtype.kind in "fiub" else np.zeros(1, np.float32)
        content.write(
            numpy_helper.from_array(np.ascontiguousarray(kept.astype(kept.dtype.newbyteorder("=")))).SerializeToString()
        )
    data = content.getvalue()
    if choice.random() < 0.3:
        data = mutated_bytes(data, choice, b"PK\x03\x04\x93NUMPY\x01\x00v\x00{'descr': '|O', 'shape': (9,)}")
    if kind == "pb":
        (folder / f"test_data_set_{index}").mkdir()
        (folder / f"test_data_set_{index}" / f"input_{choice.choice((0, 0, 0, 1))}.pb").write_bytes(data)
    else:
        (folder / f"{index}.{kind}").write_bytes(data)
