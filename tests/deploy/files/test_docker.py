"""The Dockerfile, read line by line: what it may not do, and that it fits to the bundle that it is built from."""

import json
import re
from pathlib import Path

import pytest

DOCKERFILE = Path(__file__).resolve().parents[3] / "deploy" / "docker" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [
        (line.split(" ", 1)[0], " ".join(line.split(" ", 1)[1].split())) for line in text.splitlines() if line.strip()
    ]


def stage(name: str) -> list[tuple[str, str]]:
    """The instructions of a stage and of all that it is built on."""
    found: dict[str, list[tuple[str, str]]] = {}
    current = ""
    for word, rest in instructions():
        if word == "FROM":
            base, _, current = rest.partition(" AS ")
            found[current] = list(found.get(base, []))
        elif current:
            found[current].append((word, rest))
    return found[name]


@pytest.mark.parametrize("side", ["coordinator", "site"])
def test_an_image(side: str) -> None:
    lines = stage(side)
    last = dict(lines)
    assert last["USER"] == "10001:10001"
    assert json.loads(last["ENTRYPOINT"]) == ["wardround", side]
    assert json.loads(last["CMD"]) == ["serve"]
    assert json.loads(last["HEALTHCHECK"].partition("CMD ")[2])[:4] == ["python", "-m", "wardround.deploy.alive", side]
    users = [index for index, (word, _) in enumerate(lines) if word == "USER"]
    assert not [rest for word, rest in lines[users[0] :] if word in ("RUN", "COPY")], "nothing is changed as that user"


def test_only_a_coordinator_opens_a_port() -> None:
    assert dict(stage("coordinator"))["EXPOSE"] == "8443"
    assert "EXPOSE" not in dict(stage("site"))


def test_nothing_is_fetched() -> None:
    runs = [rest for word, rest in instructions() if word == "RUN"]
    assert not [rest for word, rest in instructions() if word == "ADD"]
    assert not [run for run in runs if re.search(r"\b(curl|wget|apt|apt-get|git)\b", run)]
    installs = [run for run in runs if "pip install" in run]
    assert installs
    assert all("--no-index" in run and "--require-hashes" in run and "sha256sum --check" in run for run in installs)


def test_what_is_copied_is_in_the_bundle() -> None:
    """Its names are those that `deploy/offline` writes."""
    text = DOCKERFILE.read_text()
    from wardround.deploy.offline import bundle

    source = Path(bundle.__file__).read_text()
    for name in re.findall(r"(SHA256SUMS|requirements\.txt|sbom\.cdx\.json|packages)\b", text):
        assert name in source


def test_no_secret_is_built_in() -> None:
    assert not re.search(r"(TOKEN|SECRET|PASSWORD|KEY)\s*=", DOCKERFILE.read_text(), re.IGNORECASE)
