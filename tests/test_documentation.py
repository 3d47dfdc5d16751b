"""What the documentation says about commands, exit codes, settings and files, held against the code."""

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from wardround import errors
from wardround.strategies.catalogue import names as strategies_by_name
from wardround.strategies.catalogue import options_of
from wardround.strategies.plan import RoundPlan

CHECKOUT = Path(__file__).resolve().parents[1]
PAGES = sorted([*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").glob("*.md")])


def tree(root: type[errors.WardroundError]) -> Iterator[type[errors.WardroundError]]:
    """An error class and everything below it."""
    yield root
    for below in root.__subclasses__():
        yield from tree(below)


def table_rows(text: str) -> list[list[str]]:
    """Cells of every row of every table."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def commands(page: Path) -> list[str]:
    """Every line of every block of shell commands."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_exit_codes_are_those_of_the_error_tree() -> None:
    rows = table_rows((CHECKOUT / "docs" / "operators.md").read_text())
    said = {cells[1].strip("`"): int(cells[0]) for cells in rows if cells[0].isdecimal() and cells[1]}
    ours = {kind.__name__: kind.exit_code for kind in tree(errors.WardroundError) if kind.__module__ == errors.__name__}
    assert said == ours


def test_the_error_trees_docstring_is_true() -> None:
    said = dict(re.findall(r"(\w+) {2,}(\d+) {2,}", errors.__doc__ or ""))
    ours = {kind.__name__: str(kind.exit_code) for kind in tree(errors.WardroundError)}
    assert {name: code for name, code in ours.items() if hasattr(errors, name)} == said


@pytest.mark.parametrize("marker", ["report", "tests"])
def test_the_readme_holds_each_command_on_one_line(marker: str) -> None:
    (block,) = re.findall(
        rf"<!-- command: {marker} -->\n```bash\n(.*?)```", (CHECKOUT / "README.md").read_text(), re.DOTALL
    )
    assert len(block.splitlines()) == 1
    assert "-c constraints.txt" in block


def test_the_readmes_commands_do_what_it_says() -> None:
    readme = (CHECKOUT / "README.md").read_text()
    report, tests = (re.search(rf"command: {name} -->\n```bash\n(.*)\n", readme) for name in ("report", "tests"))
    assert report is not None
    assert "wardround simulate" in report[1]
    assert tests is not None
    assert tests[1].endswith("pytest -n 2 --dist loadfile")
    assert "command: tests" in (CHECKOUT / ".ci" / "run").read_text()


WARDROUND_COMMANDS = [
    pytest.param(" ".join(words), id=f"{page.name}: {' '.join(words)[:60]}")
    for page in PAGES
    for line in commands(page)
    for part in line.split("&&")
    if (words := shlex.split(part)) and words[0].rpartition("/")[2] == "wardround"
]


@pytest.mark.parametrize("command", WARDROUND_COMMANDS)
def test_every_command_is_understood(command: str) -> None:
    """Parsed by the real command line, but not run: options and subcommands that do not exist raise here."""
    from click import Group
    from click.exceptions import Exit

    from wardround.deploy.cli import app

    root = typer.main.get_command(app)
    assert isinstance(root, Group)
    words = shlex.split(command)[1:]
    with contextlib.suppress(Exit), root.make_context("wardround", list(words)) as context:
        name, sub, rest = root.resolve_command(context, [*context._protected_args, *context.args])
        assert sub is not None
        sub.make_context(name, rest, parent=context).close()


def test_the_accounts_of_the_workbench_are_made_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run, one line after the other, with a password through a pipe."""
    from wardround.client.home import SETTINGS_TEMPLATE, SiteHome
    from wardround.deploy.cli import run

    home = SiteHome(tmp_path)
    home.settings_file.write_text(SETTINGS_TEMPLATE.format(name="north", coordinator="https://localhost:8443"))
    (page,) = [page for page in PAGES if page.name == "administrators.md"]
    lines = [words for line in commands(page) if (words := shlex.split(line))[:3] == ["wardround", "site", "account"]]
    assert {words[3] for words in lines} == {"add", "list", "role", "password", "disable", "enable", "remove"}
    for words in lines:
        words[words.index("--home") + 1] = str(home.path)
        monkeypatch.setattr("sys.stdin", io.StringIO("correct horse of anybody\n"))
        assert run(words[1:]) == 0, words
    assert "ann may sign in no longer" in capsys.readouterr().out


BENCHMARKS = [
    pytest.param(script, options, id=f"{page.name}: {script} {options}"[:70])
    for page in PAGES
    for script, options in re.findall(r"`(?:[A-Z_]+=\S+ )?python benchmarks/(\w+\.py)([^`]*)`", page.read_text())
]


@pytest.mark.parametrize(("script", "options"), BENCHMARKS)
def test_a_benchmark_knows_the_options_that_are_written(script: str, options: str) -> None:
    text = (CHECKOUT / "benchmarks" / script).read_text()
    assert [name for name in re.findall(r"--[a-z-]+", options) if f'"{name}"' not in text] == []


def test_commands_were_found() -> None:
    assert any(found.values[0] == "workbench.py" for found in BENCHMARKS)
    assert len(WARDROUND_COMMANDS) > 5


def test_every_field_of_the_plan_is_explained() -> None:
    rows = table_rows((CHECKOUT / "docs" / "researchers.md").read_text())
    said = {name for cells in rows for name in re.findall(r"`(\w+)`", cells[0])}
    assert set(RoundPlan.model_fields) <= said


def test_every_option_of_a_strategy_is_explained() -> None:
    rows = table_rows((CHECKOUT / "docs" / "researchers.md").read_text())
    said = {
        (name, *about)
        for strategies, *about, _ in (cells for cells in rows if len(cells) == 5)
        for name in re.findall(r"`(\w+)`", strategies)
        if re.fullmatch(r"`\w+`", about[0])
    }
    ours = {
        (name, f"`{key}`", f"{option.default:g}", f"{option.low:g} … {option.high:g}")
        for name in strategies_by_name()
        for key, option in options_of(name).items()
    }
    assert said == ours


def test_every_room_is_described() -> None:
    text = (CHECKOUT / "docs" / "architecture.md").read_text()
    rooms = ("core", "models", "strategies", "client", "server", "deploy")
    folders = {file.parent.relative_to(CHECKOUT) for room in rooms for file in (CHECKOUT / room).rglob("*.py")}
    assert [folder for folder in sorted(folders) if f"`{folder}/`" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_linked_or_named_exist(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if "://" not in link]
    named = re.findall(r"`((?:core|models|strategies|client|server|deploy|tests|benchmarks)/[\w/.]+)`", text)
    # The picture is made by a run and put there before a release.
    links = [link for link in links if not link.endswith(".png")]
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [name for name in named if not (CHECKOUT / name).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_anchors_of_links_exist(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^):#]*)#([^)]+)\)", page.read_text()):
        text = ((page.parent / target) if target else page).read_text()
        heads = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
        assert anchor in anchors
