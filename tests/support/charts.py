"""Renders a Helm chart without Helm: the part of its template language that our charts use, and an error for the rest.

It is stricter than Helm: a value that the values do not name, a function that is not listed here, or a chart value that
no template uses is an error and not an empty text. What it renders was compared once with Go's own text/template.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_ACTION = re.compile(r"\{\{(-?)\s*(.*?)\s*(-?)\}\}", re.DOTALL)
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|\S+')


class ChartError(Exception):
    """A template that Helm would refuse, or that goes beyond what is understood here."""


@dataclass
class _Node:
    kind: str
    text: str = ""
    body: "list[_Node]" = field(default_factory=list)
    other: "list[_Node]" = field(default_factory=list)


class Chart:
    """One chart with values.

    Parameters
    ----------
    folder
        Of the chart.
    release
        Name of the release.
    changes
        Values instead of those of values.yaml; nested mappings are merged.
    """

    def __init__(self, folder: Path, release: str = "test", changes: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        about = yaml.safe_load((folder / "Chart.yaml").read_text())
        self.values = _merged(yaml.safe_load((folder / "values.yaml").read_text()), changes or {})
        self.used: set[str] = set()
        self._root = {"Values": self.values, "Release": {"Name": release}, "Chart": {"Name": about["name"]}}
        self._defined: dict[str, list[_Node]] = {}
        for path in sorted((folder / "templates").glob("*.tpl")):
            self._take(path)

    def render(self) -> list[dict[str, Any]]:
        """Every object of every template."""
        objects = []
        for path in sorted((self.folder / "templates").glob("*.yaml")):
            text = self._write(self._take(path), self._root)
            objects += [found for found in yaml.load_all(text, Loader=_Strict) if found is not None]
        return objects

    def _take(self, path: Path) -> list[_Node]:
        pieces = _pieces(path.read_text())
        nodes, end = _parse(iter(pieces))
        if end:
            raise ChartError(f"{path.name}: {end} closes nothing")
        for node in nodes:
            if node.kind == "define":
                self._defined[str(_literal(node.text))] = node.body
        return [node for node in nodes if node.kind != "define"]

    def _write(self, nodes: list[_Node], dot: Any) -> str:
        parts = []
        for node in nodes:
            if node.kind == "text":
                parts.append(node.text)
            elif node.kind == "do":
                parts.append(_shown(self._value(node.text, dot)))
            elif node.kind == "if":
                parts.append(self._write(node.body if self._value(node.text, dot) else node.other, dot))
            elif node.kind == "with":
                value = self._value(node.text, dot)
                parts.append(self._write(node.body, value) if value else self._write(node.other, dot))
            else:
                items = self._value(node.text, dot)
                parts += [self._write(node.body, item) for item in items]
        return "".join(parts)

    def _value(self, text: str, dot: Any) -> Any:
        stages = [stage.strip() for stage in re.split(r'\|(?=(?:[^"]*"[^"]*")*[^"]*$)', text)]
        value: Any = None
        for number, stage in enumerate(stages):
            words = _WORD.findall(stage)
            given = [] if number == 0 else [value]
            if len(words) == 1 and not given and (words[0][0] in '."' or words[0].isdecimal()):
                value = self._operand(words[0], dot)
                continue
            function = self._functions(dot).get(words[0])
            if function is None:
                raise ChartError(f"{words[0]} is no function that is known here")
            value = function(*[self._operand(word, dot) for word in words[1:]], *given)
        return value

    def _operand(self, word: str, dot: Any) -> Any:
        if word.startswith('"') or word.isdecimal():
            return _literal(word)
        if not word.startswith("."):
            raise ChartError(f"{word} is no value that is known here")
        value = dot
        for name in [name for name in word.split(".") if name]:
            if not isinstance(value, Mapping) or name not in value:
                raise ChartError(f"{word} is not among the values")
            value = value[name]
        if word.startswith(".Values."):
            self.used.add(word.removeprefix(".Values."))
        return value

    def _functions(self, dot: Any) -> dict[str, Callable[..., Any]]:
        def include(name: str, context: Any) -> str:
            return self._write(self._defined[name], context)

        def fail(message: str) -> str:
            raise ChartError(message)

        return {
            "include": include,
            "fail": fail,
            "quote": lambda value: json.dumps(str(value)),
            "nindent": lambda width, value: "\n" + "\n".join(" " * width + line for line in str(value).split("\n")),
            "toYaml": lambda value: yaml.safe_dump(value, default_flow_style=False).rstrip("\n"),
            "printf": lambda pattern, *values: pattern % values,
            "not": lambda value: not value,
            "ne": lambda first, second: first != second,
        }


class _Strict(yaml.SafeLoader):
    """YAML in which no key stands twice in one mapping."""


def _mapping(loader: _Strict, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    if len(set(keys)) != len(keys):
        raise ChartError(f"a key stands twice: {keys}")
    return {key: loader.construct_object(value, deep=True) for key, (_, value) in zip(keys, node.value, strict=True)}


_Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _pieces(text: str) -> list[tuple[str, str]]:
    """Text and actions, with the white space taken away that an action asks to have taken away."""
    pieces: list[tuple[str, str]] = []
    end, trim = 0, False
    for found in _ACTION.finditer(text):
        before = text[end : found.start()]
        before = before.lstrip() if trim else before
        pieces += [("text", before.rstrip() if found[1] else before), ("action", found[2])]
        end, trim = found.end(), bool(found[3])
    rest = text[end:]
    pieces.append(("text", rest.lstrip() if trim else rest))
    if any("{{" in text or "}}" in text for kind, text in pieces if kind == "text"):
        raise ChartError("an action is not closed")
    return pieces


def _parse(pieces: Iterator[tuple[str, str]]) -> tuple[list[_Node], str]:
    nodes: list[_Node] = []
    for kind, text in pieces:
        if kind == "text":
            nodes.append(_Node("text", text))
            continue
        word, _, rest = text.partition(" ")
        if word in ("end", "else"):
            return nodes, word
        if word in ("if", "with", "range", "define"):
            node = _Node(word, rest.strip())
            node.body, end = _parse(pieces)
            if end == "else":
                node.other, end = _parse(pieces)
            if end != "end":
                raise ChartError(f"{word} is never closed")
            nodes.append(node)
        elif not text.startswith("/*"):
            nodes.append(_Node("do", text))
    return nodes, ""


def _literal(word: str) -> Any:
    return int(word) if word.isdecimal() else json.loads(word)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, int)):
        return str(value)
    raise ChartError(f"a {type(value).__name__} cannot be written as it is: use toYaml")


def _merged(old: Any, new: Any) -> Any:
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    unknown = new.keys() - old.keys()
    if unknown and old:
        raise ChartError(f"{sorted(unknown)} are not among the values")
    return {**old, **{name: _merged(old.get(name), value) for name, value in new.items()}}
