"""What ends `wardround site serve` before anything is served."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from living import make_home

from wardround.client.agent import Agent
from wardround.deploy.site.serving import serve
from wardround.errors import UsageError


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serving changes how this process takes signals and makes files; and what starts all the same ends at once."""
    monkeypatch.setattr(Agent, "wait", lambda agent: None)
    handler, mask = signal.getsignal(signal.SIGTERM), os.umask(0o022)
    yield
    signal.signal(signal.SIGTERM, handler)
    os.umask(mask)


@pytest.mark.parametrize(("line", "said"), [("min-cases = -1", "min-cases"), ("require-secure = true", "secure-peers")])
def test_a_policy_that_cannot_be_used_is_told_at_the_start(tmp_path: Path, line: str, said: str) -> None:
    """While it runs, a site refuses every message for that; nobody would read why."""
    home = make_home(tmp_path / "home", cases=0, tests=0)
    name = line.partition(" =")[0]
    text = home.policy.read_text()
    home.policy.write_text("\n".join(line if row.startswith(f"{name} =") else row for row in text.splitlines()) + "\n")
    with pytest.raises(UsageError, match=said):
        serve(home, connect=True)
    if name == "require-secure":
        serve(home, connect=False)  # Who only draws there is not kept from it.
    serve(make_home(tmp_path / "another", cases=0, tests=0), connect=False)
