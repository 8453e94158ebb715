"""YAML from people who are not trusted: safe tags only, no aliases, no repeated keys, bounded size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from qcli.errors import UsageError

_LIMIT = 4 << 20
_LONGEST_NUMBER = 400


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses aliases (a short file can stand for gigabytes) and repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """YAML counts `1:30` in sixties: a number of a megabyte would take hours to be read."""
        long = len(node.value) > _LONGEST_NUMBER
        if long and node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
            raise yaml.YAMLError(f"a number of more than {_LONGEST_NUMBER} digits")
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            written = repr(self.construct_object(key, deep=True))  # a key may be a list, which no set holds
            if written in seen:
                raise yaml.YAMLError(f"the key {written} stands twice")
            seen.add(written)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, what: str) -> Any:
    """The content of a YAML file as plain data. Raises UsageError that names the file and the line."""
    try:
        if path.stat().st_size > _LIMIT:
            raise UsageError(f"{what} '{path}' is larger than {_LIMIT >> 20} MiB", "a recipe or a plan is a short file")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{what} '{path}' cannot be read: {error.strerror}", "check the path") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} '{path}' is not text in UTF-8", "write it as YAML") from error
    return parse_yaml(text, f"{what} '{path}'")


def parse_yaml(text: str, where: str) -> Any:
    """Plain data from YAML text. Raises UsageError that names `where` and the line."""
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        # the last three are PyYAML's on a tag whose value does not fit it, e.g. `!!int ''`
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UsageError(f"{where}{place}: {problem}", "check the YAML") from error


def write_yaml(data: Any) -> str:
    """Plain data as YAML: short mappings and lists in one line, keys in their order."""
    text: str = yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=160, allow_unicode=True)
    return text
