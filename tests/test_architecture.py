"""Who may import whom. The table of `docs/architecture.md`, held against the source itself.

Imports are read from the syntax tree, so that an import inside a function counts as well as one at the top.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
ROOMS = ("core", "models", "strategies", "client", "server", "deploy")
GROUND = (
    "wardround",
    "wardround.__version__",
    "wardround.errors",
    "wardround.files",
    "wardround.flower",
    "wardround.leftovers",
    "wardround.listening",
    "wardround.pages",
    "wardround.processes",
)
"""The folder ``core/``: what every room stands on."""


@dataclass(frozen=True)
class Rule:
    """What the modules of one room may import.

    Parameters
    ----------
    ours
        Prefixes under ``wardround``; the ground is always allowed.
    others
        Packages of others; None for any. The standard library is always allowed.
    """

    ours: tuple[str, ...]
    others: frozenset[str] | None


ANY = None
RULES: Mapping[str, Rule] = {
    "core": Rule((), frozenset()),
    "models": Rule(("wardround.models",), frozenset({"torch", "monai", "diffusers", "numpy", "safetensors"})),
    "strategies": Rule(("wardround.strategies",), frozenset({"cryptography", "flwr", "numpy", "pydantic"})),
    "client": Rule(("wardround.client", "wardround.models", "wardround.strategies"), ANY),
    "server": Rule(
        ("wardround.server", "wardround.strategies", "wardround.models"),
        frozenset(
            {
                "fastapi",
                "flwr",
                "google",
                "numpy",
                "pydantic",
                "safetensors",
                "sqlalchemy",
                "starlette",
                "torch",
                "uvicorn",
                "jinja2",
                "prometheus_client",
            }
        ),
    ),
    "deploy": Rule(("wardround",), ANY),
}

COURIER = ("wardround.client.app", "wardround.client.door", "wardround.client.wire", "wardround.client.home")
"""Flower starts a new process for each message; what it imports first must come without these."""
HEAVY = ("torch", "monai", "SimpleITK", "scipy", "nibabel")

GATE = "wardround.client.gate"
"""What judges whatever comes in and leaves: it depends on nothing that it judges."""
GATES_RULE = Rule((GATE, "wardround.strategies"), frozenset({"flwr", "numpy", "pydantic"}))

TRUTH = "wardround.client.annotation.annotator"
"""The only module through which a dense label reaches the loop."""
WHO_DRAWS = f"{TRUTH}.Annotator"
"""The interface of whoever draws, a person as well: this name alone gives nothing away."""
MADE_FROM_TRUTH = ("wardround.client.annotation.clicks", "wardround.client.annotation.strokes")
"""They make what an annotator would give from a dense label, which they are handed."""
WHO_MAKES = (TRUTH, "wardround.benchmarks.seeds")
"""Who may call these: the simulated annotator, and the script that holds seeds against the truth."""
BLIND = (
    "wardround.client.learning",
    "wardround.client.supervision",
    "wardround.client.annotation.propagation",
    "wardround.client.annotation.registration",
    "wardround.client.annotation.guidance",
    "wardround.client.annotation.prompts",
    "wardround.client.site",
    "wardround.models",
)
"""Modules that must learn from prompts alone, and whatever they import."""


@dataclass(frozen=True)
class Module:
    """One source file under its import name, and what it imports.

    Parameters
    ----------
    name, room
        ``wardround.client.app`` and ``client``.
    imports
        Every dotted name that the file imports, wherever it does.
    at_import
        Those that are imported when the module itself is.
    """

    name: str
    room: str
    imports: frozenset[str]
    at_import: frozenset[str]


def read_module(source: str, path: str) -> Module:
    """Read the imports of the file at `path`, a path relative to the checkout such as ``client/app.py``."""
    parts = list(Path(path).with_suffix("").parts)
    room = parts[0]
    is_package = parts[-1] == "__init__"
    dotted = [part for part in (parts[1:] if room == "core" else parts) if part != "__init__"]
    name = ".".join(["wardround", *dotted])
    tree = ast.parse(source, path)
    package = name if is_package else name.rpartition(".")[0]
    everywhere = frozenset(_imported(ast.walk(tree), package))
    return Module(name, room, everywhere, frozenset(_imported(_executed_at_import(tree), package)))


def _executed_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported: no function bodies, no blocks for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from _executed_at_import(child)


def _imported(nodes: Iterator[ast.AST], package: str) -> Iterator[str]:
    for node in nodes:
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = package.split(".")[: len(package.split(".")) - level + 1] if level else []
                full = ".".join([*base, *([module] if module else [])])
                # `from a import b` may mean the module a.b or the name b in the module a.
                yield from (f"{full}.{alias.name}" for alias in names)
            case ast.Call(func=func, args=[ast.Constant(value=str(target)), *_]) if ast.unparse(func).endswith(
                ("import_module", "__import__")
            ):
                yield target


def _within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def broken_rules(module: Module) -> list[str]:
    """Every import of `module` that its room's rule does not allow, as a sentence."""
    rule = GATES_RULE if _within(module.name, GATE) else RULES[module.room]
    broken = []
    for name in sorted(module.imports):
        top = name.partition(".")[0]
        if top == "wardround":
            allowed = name in GROUND or any(_within(name, prefix) for prefix in (*GROUND[2:], *rule.ours))
        else:
            allowed = top in sys.stdlib_module_names or rule.others is None or top in rule.others
        if not allowed:
            broken.append(f"{module.name} imports {name}, which {module.room}/ may not")
    if module.name in COURIER:
        broken += [
            f"{module.name} imports {name} at the top, which the courier may not"
            for name in sorted(module.at_import)
            if name.partition(".")[0] in HEAVY
        ]
    return broken


def ways_to_the_truth(modules: Mapping[str, Module]) -> list[str]:
    """Chains of imports by which a module that must not see the truth comes to it."""
    chains = []
    for start in modules:
        if not any(_within(start, prefix) for prefix in BLIND):
            continue
        open_chains, seen = [[start]], {start}
        while open_chains:
            chain = open_chains.pop()
            for name in sorted(modules[chain[-1]].imports - {WHO_DRAWS}):
                if _within(name, TRUTH):
                    chains.append(" → ".join([*chain, name]))
                    continue
                for imported in {name, name.rpartition(".")[0]} & modules.keys() - seen:
                    seen.add(imported)
                    open_chains.append([*chain, imported])
    return chains


def makers_from_truth(modules: Mapping[str, Module]) -> list[str]:
    """Every import of a module that makes prompts from a dense label by one that may not, as a sentence."""
    return [
        f"{module.name} imports {name}, which makes prompts from the truth"
        for module in modules.values()
        for name in sorted(module.imports)
        if module.name not in WHO_MAKES and any(_within(name, prefix) for prefix in MADE_FROM_TRUTH)
    ]


def all_modules(*rooms: str) -> dict[str, Module]:
    """Every source file of these rooms, by import name."""
    files = [file for room in rooms for file in (CHECKOUT / room).rglob("*.py")]
    read = [read_module(file.read_text(), str(file.relative_to(CHECKOUT))) for file in files]
    return {module.name: module for module in read}


MODULES = all_modules(*ROOMS)


def test_every_room_is_read() -> None:
    assert {module.room for module in MODULES.values()} == set(ROOMS) == set(RULES)
    assert {"wardround", "wardround.errors", *COURIER} <= MODULES.keys()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    broken = [line for module in MODULES.values() if module.room == room for line in broken_rules(module)]
    assert not broken, "\n".join(broken)


def test_learner_and_propagation_cannot_reach_the_truth() -> None:
    chains = ways_to_the_truth(MODULES)
    assert not chains, "\n".join(chains)


def test_prompts_are_made_from_the_truth_by_the_simulated_annotator_alone() -> None:
    assert MODULES.keys() >= set(MADE_FROM_TRUTH)
    assert any(_within(name, MADE_FROM_TRUTH[0]) for name in MODULES[TRUTH].imports)
    broken = makers_from_truth(MODULES | all_modules("benchmarks"))
    assert not broken, "\n".join(broken)


def test_no_top_level_import_of_a_room() -> None:
    """``from client import …`` works in a checkout and nowhere else."""
    broken = [
        f"{module.name} imports {name}"
        for module in MODULES.values()
        for name in module.imports
        if name.partition(".")[0] in ROOMS
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("courier", COURIER)
def test_the_courier_starts_without_heavy_packages(courier: str) -> None:
    code = f"import sys, {courier}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert answer.returncode == 0, answer.stderr
    loaded = set(answer.stdout.split())
    assert "wardround" in loaded
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize(
    ("path", "source", "named"),
    [
        ("client/learning/learner.py", "import wardround.server.rounds", "wardround.server.rounds"),
        ("client/learning/learner.py", "from wardround import server", "wardround.server"),
        ("client/learning/learner.py", "def f():\n    from wardround.deploy import cli", "wardround.deploy.cli"),
        ("client/cases/store.py", "from ...server import rounds", "wardround.server.rounds"),
        ("client/site.py", "import importlib\nimportlib.import_module('wardround.server')", "wardround.server"),
        ("server/rounds.py", "from wardround.client.site import Site", "wardround.client.site"),
        ("server/rounds.py", "import nibabel", "nibabel"),
        ("models/catalogue.py", "import flwr.app", "flwr.app"),
        ("models/catalogue.py", "from wardround.strategies.plan import RoundPlan", "wardround.strategies.plan"),
        ("strategies/plan.py", "import torch", "torch"),
        ("strategies/plan.py", "from wardround.models import catalogue", "wardround.models.catalogue"),
        ("core/files.py", "import numpy", "numpy"),
        ("core/files.py", "from wardround.client.cases import volume", "wardround.client.cases.volume"),
        ("client/app.py", "import torch", "torch"),
        (
            "client/door.py",
            "try:\n    from monai.networks import nets\nexcept ImportError:\n    pass",
            "monai.networks",
        ),
        ("client/door.py", "class Door:\n    import torch", "torch"),
        ("client/gate/update.py", "def f():\n    import torch", "torch"),
        ("client/gate/gate.py", "from wardround.client.site import Site", "wardround.client.site"),
    ],
)
def test_a_broken_rule_is_found(path: str, source: str, named: str) -> None:
    assert any(f"imports {named}" in line for line in broken_rules(read_module(source, path)))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("client/door.py", "def f():\n    import torch"),
        ("client/door.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("models/catalogue.py", "from wardround.errors import UsageError\nimport torch"),
        ("client/cases/nifti.py", "from . import volume\nfrom ..annotation import prompts\nimport nibabel"),
        ("client/app.py", "from wardround import __version__"),
        ("deploy/cli.py", "import wardround.client.site, wardround.server.rounds"),
    ],
)
def test_what_is_allowed_is_not_reported(path: str, source: str) -> None:
    assert broken_rules(read_module(source, path)) == []


@pytest.mark.parametrize(
    ("sources", "found"),
    [
        ({"client/learning/learner.py": f"from {TRUTH} import Truth"}, True),
        ({"client/annotation/guidance.py": "from wardround.client.annotation import annotator"}, True),
        (
            {
                "client/learning/learner.py": "from wardround.client.annotation.helper import help",
                "client/annotation/helper.py": "from .annotator import Truth",
            },
            True,
        ),
        ({"client/site.py": f"from {TRUTH} import Annotator, SimulatedAnnotator"}, True),
        ({"client/site.py": f"import {TRUTH}"}, True),
        ({"client/site.py": f"from {TRUTH} import Annotator"}, False),
        ({"client/door.py": f"from {TRUTH} import SimulatedAnnotator"}, False),
        ({"client/learning/learner.py": "from wardround.client.annotation.propagation import propagate"}, False),
    ],
)
def test_a_way_to_the_truth_is_found(sources: dict[str, str], found: bool) -> None:
    modules = {module.name: module for module in (read_module(text, path) for path, text in sources.items())}
    assert bool(ways_to_the_truth(modules)) == found


@pytest.mark.parametrize(
    ("path", "source", "found"),
    [
        ("client/learning/session.py", "from wardround.client.annotation.clicks import seven_clicks", True),
        ("client/workbench/desk.py", "def f():\n    from wardround.client.annotation import strokes", True),
        ("client/annotation/expansion.py", "from .clicks import BEYOND", True),
        ("deploy/simulation.py", "import wardround.client.annotation.strokes", True),
        ("benchmarks/weak/labels.py", "from wardround.client.annotation.clicks import seven_clicks", True),
        ("client/annotation/annotator.py", "from wardround.client.annotation.clicks import seven_clicks", False),
        ("deploy/simulation.py", f"from {TRUTH} import SimulatedAnnotator", False),
    ],
)
def test_whoever_makes_prompts_from_the_truth_is_found(path: str, source: str, found: bool) -> None:
    module = read_module(source, path)
    assert bool(makers_from_truth({module.name: module})) == found
