"""The style budget as assertions. Run as a program it prints the figures: python tests/test_style.py."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "qcli"

FUNCTION_LINES = 60
FUNCTION_LINES_MEDIAN = 8
FUNCTION_LINES_95 = 40
FILE_LINES = 350
FILE_LINES_MEDIAN = 120
PARAMETERS = 5
ARMS = 3

MAY_PRINT = ("cli/", "render.py")
MAY_CATCH_ALL = ("cli/", "prepare.py", "tuning/metric.py")
"""The command line's edge, the differential check of graph steps, and code of the user's own."""

MAY_HAVE_MORE_PARAMETERS = ("cli/",)
"""A command's options are the parameters of its function."""

VAGUE = ("Manager", "Handler", "Helper", "Util")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class File:
    """One module, parsed."""

    name: str
    text: str
    tree: ast.Module

    @property
    def lines(self) -> int:
        return self.text.count("\n")

    def functions(self) -> Iterator[Function]:
        return (node for node in ast.walk(self.tree) if isinstance(node, Function))

    def where(self, node: ast.stmt | ast.expr | ast.ExceptHandler) -> str:
        return f"qcli/{self.name}:{node.lineno}"

    def allowed(self, places: Sequence[str]) -> bool:
        return any(self.name.startswith(place) for place in places)


def read(path: Path) -> File:
    text = path.read_text(encoding="utf-8")
    return File(path.relative_to(PACKAGE).as_posix(), text, ast.parse(text))


FILES = tuple(read(path) for path in sorted(PACKAGE.rglob("*.py")))


def length(function: Function) -> int:
    """Lines from the first decorator or `def` to the end, without the docstring."""
    first = min([function.lineno, *(item.lineno for item in function.decorator_list)])
    lines = (function.end_lineno or first) - first + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    return lines


def function_lines() -> list[int]:
    return [length(function) for file in FILES for function in file.functions()]


def file_lines() -> list[int]:
    return [file.lines for file in FILES if file.lines > 1]


def long_functions() -> Iterator[str]:
    for file in FILES:
        for function in file.functions():
            lines = _body_lines(function) if file.name.startswith("cli/") else length(function)
            if lines > FUNCTION_LINES:
                yield f"{file.where(function)} {function.name} has {lines} lines, at most {FUNCTION_LINES}"


def _body_lines(function: Function) -> int:
    """Lines without the signature, which for a command is the table of its options."""
    return (function.end_lineno or function.lineno) - function.body[0].lineno + 1


def long_files() -> Iterator[str]:
    for file in FILES:
        if file.lines > FILE_LINES:
            yield f"qcli/{file.name} has {file.lines} lines, at most {FILE_LINES}"


def many_parameters() -> Iterator[str]:
    for file in FILES:
        for function in file.functions():
            arguments = function.args
            named = [*arguments.posonlyargs, *arguments.args]
            count = len([item for item in named if item.arg not in ("self", "cls")])
            if count > PARAMETERS and not file.allowed(MAY_HAVE_MORE_PARAMETERS):
                yield f"{file.where(function)} {function.name} has {count} positional parameters, at most {PARAMETERS}"


def broad_excepts() -> Iterator[str]:
    for file in FILES:
        for node in ast.walk(file.tree):
            if isinstance(node, ast.ExceptHandler) and _is_broad(node) and not file.allowed(MAY_CATCH_ALL):
                yield f"{file.where(node)} catches everything"


def _is_broad(handler: ast.ExceptHandler) -> bool:
    caught = handler.type
    items = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(item is None or ast.unparse(item) in ("Exception", "BaseException") for item in items)


def prints() -> Iterator[str]:
    for file in FILES:
        for node in ast.walk(file.tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print" and not file.allowed(MAY_PRINT):
                yield f"{file.where(node)} prints"


def bare_functions() -> Iterator[str]:
    """Functions with a parameter or a result that has no annotation."""
    for file in FILES:
        for function in file.functions():
            arguments = function.args
            given = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg)
            bare = [item.arg for item in given if item is not None and item.annotation is None]
            lacking = [name for name in bare if name not in ("self", "cls")]
            if lacking or function.returns is None:
                yield f"{file.where(function)} {function.name} lacks annotations: {', '.join([*lacking, 'result'])}"


def long_chains() -> Iterator[str]:
    for file in FILES:
        inner = {id(arm) for node in ast.walk(file.tree) if isinstance(node, ast.If) for arm in _elif(node)}
        for node in ast.walk(file.tree):
            if isinstance(node, ast.If) and id(node) not in inner and _arms(node) > ARMS:
                yield f"{file.where(node)} is a chain of {_arms(node)} conditions, at most {ARMS}"


def _elif(node: ast.If) -> list[ast.If]:
    return [node.orelse[0]] if len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If) else []


def _arms(node: ast.If) -> int:
    below = _elif(node)
    return 1 + (_arms(below[0]) if below else 0)


def vague_names() -> Iterator[str]:
    for file in FILES:
        for node in ast.walk(file.tree):
            if isinstance(node, ast.ClassDef) and any(word in node.name for word in VAGUE):
                yield f"{file.where(node)} {node.name} says nothing"


def undocumented_modules() -> Iterator[str]:
    for file in FILES:
        if file.name != "__main__.py" and not ast.get_docstring(file.tree):
            yield f"qcli/{file.name} has no docstring"


CHECKS: tuple[Callable[[], Iterator[str]], ...] = (
    long_functions,
    long_files,
    many_parameters,
    broad_excepts,
    prints,
    bare_functions,
    long_chains,
    vague_names,
    undocumented_modules,
)


def figures() -> dict[str, tuple[float, float]]:
    """Each figure and its limit."""
    functions, files = function_lines(), file_lines()
    return {
        "lines of a function, median": (median(functions), FUNCTION_LINES_MEDIAN),
        "lines of a function, 95th percentile": (quantiles(functions, n=20)[-1], FUNCTION_LINES_95),
        "lines of a file, median": (median(files), FILE_LINES_MEDIAN),
    }


def breaches() -> list[str]:
    found = [problem for check in CHECKS for problem in check()]
    found += [f"{name}: {value:g}, at most {limit:g}" for name, (value, limit) in figures().items() if value > limit]
    return found


def test_no_function_is_too_long() -> None:
    assert list(long_functions()) == []


def test_no_file_is_too_long() -> None:
    assert list(long_files()) == []


def test_few_parameters() -> None:
    assert list(many_parameters()) == []


def test_no_broad_except() -> None:
    assert list(broad_excepts()) == []


def test_no_print() -> None:
    assert list(prints()) == []


def test_everything_is_annotated() -> None:
    assert list(bare_functions()) == []


def test_no_long_chain_of_conditions() -> None:
    assert list(long_chains()) == []


def test_names_say_something() -> None:
    assert list(vague_names()) == []


def test_every_module_says_what_it_is() -> None:
    assert list(undocumented_modules()) == []


def test_figures_are_within_the_budget() -> None:
    for name, (value, limit) in figures().items():
        assert value <= limit, name


def test_the_tests_are_longer_than_what_they_test() -> None:
    tests = sum(path.read_text(encoding="utf-8").count("\n") for path in (ROOT / "tests").rglob("*.py"))
    code = sum(file.lines for file in FILES)
    assert tests >= code, f"{tests} lines of tests for {code} lines of code"


def main() -> int:
    functions, files = function_lines(), file_lines()
    print(f"files      {len(files)}, {sum(files)} lines, the longest {max(files)}")
    print(f"functions  {len(functions)}, the longest {max(functions)}")
    for name, (value, limit) in figures().items():
        print(f"{name}: {value:g} (at most {limit:g})")
    found = breaches()
    for problem in found:
        print(problem)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
