"""Secure aggregation between real processes: a SuperLink, SuperNodes and agents with keys, each on its own.

What they learn is held against `wardround simulate --secure` to the last bit, and that against a run in the open.
"""

from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key
from federation import Federation, Reference, local_options, simulate
from safetensors.numpy import load

from wardround.client.gate.ledger import Ledger
from wardround.strategies.secure.identity import fingerprint

SITES, ROUNDS = 3, 2

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return simulate(tmp_path_factory.mktemp("reference") / "out", "--secure", sites=SITES, rounds=ROUNDS)


def test_a_simulation_learns_the_same_as_in_the_open(reference: Reference, tmp_path: Path) -> None:
    plain = simulate(tmp_path / "out", sites=SITES, rounds=ROUNDS)
    ours, theirs = load(reference.weights(1)), load(plain.weights(1))
    assert max(np.abs(ours[name] - theirs[name]).max() for name in theirs) < 1e-6
    record = reference.rounds()[0]
    assert record.summed["num-examples"] == SITES
    assert not any(report.metrics for report in record.sites.values())


def test_a_federation_adds_up_under_masks(reference: Reference, tmp_path: Path) -> None:
    federation = Federation(tmp_path, reference, local_options())
    pinned = ", ".join(f'{name} = "{of(home.keys / "node.pub")}"' for name, home in federation.sites.items())
    for home in federation.sites.values():
        text = home.policy.read_text().replace("require-secure = false", "require-secure = true")
        home.policy.write_text(text.replace("secure-peers = {}", f"secure-peers = {{ {pinned} }}"))
    with federation.serving():
        federation.run("open", "--plan", "secure=false", "--setting", "retries=0", code=6)
        federation.run("masked")
    for number in range(1, ROUNDS + 1):
        assert federation.weights("masked", number) == reference.weights(number)
    for record in federation.rounds("masked"):
        assert list(record.sites) == reference.sites
        assert record.summed["num-examples"] == SITES * record.round
        for name, home in federation.sites.items():
            lines = [
                line for line in Ledger(home.ledger).entries()
                if (line.direction, line.kind, line.run, line.round, line.code)
                == ("out", "train", "masked", record.round, "sent")
            ]  # fmt: skip
            assert [line.sha256 for line in lines][2] == record.sites[name].digest
            assert len(lines) == 5
            assert not record.sites[name].metrics


def of(public: Path) -> str:
    key = load_ssh_public_key(public.read_bytes())
    return fingerprint(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
