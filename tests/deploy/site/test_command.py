"""`wardround site` as an administrator types it."""

import datetime
import json
from pathlib import Path

import numpy as np
import pytest
from living import agent_process, ask, make_home, plan

from wardround.client.arrivals import IMPORTED, REFERENCE
from wardround.client.cases.dataset import load_dataset
from wardround.client.cases.nifti import read_labels, write_volume
from wardround.client.cases.phantoms import draw_phantom
from wardround.client.cases.store import CaseStore
from wardround.client.cases.volume import Volume
from wardround.client.gate.approvals import Approvals
from wardround.client.gate.gate import Gate
from wardround.client.gate.policy import load_policy
from wardround.client.home import SiteHome
from wardround.client.intake import STORE
from wardround.client.learning.latest import LatestModel, weights_digest
from wardround.deploy.cli import run
from wardround.deploy.coordinator.bundle import write_bundle
from wardround.deploy.provisioning import Authority, make_invitation, read_enrolment
from wardround.deploy.provisioning.keys import fingerprint
from wardround.errors import DataError, GateRefused, StorageError, UsageError
from wardround.models.catalogue import build
from wardround.models.weights import weights_of

NOW = datetime.datetime.now(datetime.UTC)
URL = "https://fed.example.org:8443"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("coordinator") / "ca", "coordinator", NOW)


def invited(folder: Path, authority: Authority, site: str = "north", url: str = URL) -> Path:
    """An invitation as a file."""
    path = folder / f"{site}.invitation.json"
    path.write_bytes(make_invitation(authority, url, site, NOW, 14)[1])
    return path


@pytest.fixture
def home(tmp_path: Path, authority: Authority, capfd: pytest.CaptureFixture[str]) -> SiteHome:
    """A home as `init` makes it."""
    assert run(["site", "init", str(invited(tmp_path, authority)), "--home", str(tmp_path / "home")]) == 0
    capfd.readouterr()
    return SiteHome(tmp_path / "home")


@pytest.fixture
def living(tmp_path: Path) -> SiteHome:
    """A home with phantoms."""
    return make_home(tmp_path / "living", cases=1, tests=1)


def typed(home: SiteHome, *words: str) -> int:
    return run(["site", words[0], *words[1:], "--home", str(home.path)])


def phantom(folder: Path, number: int) -> tuple[Path, Path]:
    """Image and label as files."""
    image, labels = draw_phantom(np.random.default_rng(number), shape=(16, 24, 16))
    paths = folder / f"scan-{number}.nii.gz", folder / f"scan-{number}-label.nii.gz"
    for path, volume in zip(paths, (image, labels), strict=True):
        write_volume(path, volume)
    return paths


def test_init_makes_a_home_and_an_answer(home: SiteHome, authority: Authority) -> None:
    settings = home.settings
    assert (settings.name, settings.coordinator, settings.device) == ("north", URL, "auto")
    assert home.path.stat().st_mode & 0o777 == 0o700
    assert home.node_key.stat().st_mode & 0o777 == 0o600
    assert load_policy(home.policy).min_cases == 5
    answer = home.path / "enrolment.json"
    enrolment = read_enrolment(answer)
    assert enrolment.site == "north"
    assert enrolment.public_key == home.node_key.with_suffix(".pub").read_text().strip()
    secret = "".join(home.node_key.read_text().splitlines()[1:-1])
    assert secret[:64] not in answer.read_text()


def test_init_shows_what_to_compare_and_what_to_send(
    tmp_path: Path, authority: Authority, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["site", "init", str(invited(tmp_path, authority)), "--home", str(tmp_path / "home")]) == 0
    said = capfd.readouterr().out
    assert authority.fingerprint in said
    assert fingerprint((tmp_path / "home" / "keys" / "node.pub").read_text()) in said
    assert "enrolment.json" in said
    assert "policy.toml" in said


def test_init_again_keeps_key_settings_and_policy(tmp_path: Path, home: SiteHome, authority: Authority) -> None:
    key = home.node_key.read_bytes()
    for file in (home.settings_file, home.policy):
        file.write_text(file.read_text() + "# mine\n")
    assert typed(home, "init", str(invited(tmp_path, authority))) == 0
    assert home.node_key.read_bytes() == key
    assert home.settings_file.read_text().endswith("# mine\n")
    assert home.policy.read_text().endswith("# mine\n")
    assert typed(home, "init", str(invited(tmp_path, authority)), "--new-key") == 0
    assert home.node_key.read_bytes() != key
    assert (home.keys / "node.before").read_bytes() == key
    # Once more, as after a mistake: the first key is the only one that the coordinator knows.
    assert typed(home, "init", str(invited(tmp_path, authority)), "--new-key") == 0
    assert (home.keys / "node.before").read_bytes() == key
    assert len({file.read_bytes() for file in home.keys.glob("node*") if file.suffix != ".pub"}) == 3


def test_init_goes_on_after_a_crash(tmp_path: Path, home: SiteHome, authority: Authority) -> None:
    key = home.node_key.read_bytes()
    home.settings_file.unlink()
    (home.path / "enrolment.json").unlink()
    assert typed(home, "init", str(invited(tmp_path, authority))) == 0
    assert home.node_key.read_bytes() == key
    assert home.settings.name == "north"


def test_init_never_takes_another_folder(
    tmp_path: Path, home: SiteHome, authority: Authority, capfd: pytest.CaptureFixture[str]
) -> None:
    assert typed(home, "init", str(invited(tmp_path, authority, site="south"))) == DataError.exit_code
    other = Authority.create(tmp_path / "other", "other", NOW)
    assert typed(home, "init", str(invited(tmp_path, other))) == DataError.exit_code
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert run(["site", "init", str(invited(tmp_path, authority)), "--home", str(tmp_path / "full")]) == 2
    assert "is not empty" in capfd.readouterr().err


def test_a_folder_that_is_no_home_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["site", "status", "--home", str(tmp_path)]) == DataError.exit_code
    assert "wardround site init" in capfd.readouterr().err


def test_import_takes_images_with_and_without_labels(
    tmp_path: Path, home: SiteHome, capfd: pytest.CaptureFixture[str]
) -> None:
    (first, label), (second, _) = phantom(tmp_path, 1), phantom(tmp_path, 2)
    assert typed(home, "import", str(first), "--label", str(label)) == 0
    assert typed(home, "import", str(first), "--label", str(label)) == 0
    assert typed(home, "import", str(second), "--id", "bare") == 0
    assert typed(home, "import", str(first), "--label", str(label), "--id", "held", "--test") == 0
    said = capfd.readouterr().out
    assert "1 new of 1 cases to learn from" in said
    assert "0 new of 1 cases to learn from" in said
    assert "1 have no label" in said
    assert said.count("labels go up to 2: a run that knows them has --labels 3 or more") == 3
    with CaseStore(home.site / STORE) as store:
        assert store.cases("stream") == ("scan-1", "bare")
        assert store.cases("test") == ("held",)
        assert store.labelled(IMPORTED) == {"scan-1"}
        assert store.labelled(REFERENCE) == {"held"}


def test_import_takes_a_data_set_or_parts_of_it(tmp_path: Path, home: SiteHome) -> None:
    folder = tmp_path / "set"
    assert run(["phantoms", str(folder), "--sites", "1", "--cases", "3", "--tests", "1", "--shape", "16,24,16"]) == 0
    names = list(load_dataset(folder).cases)
    assert typed(home, "import", str(folder), "--case", names[2], "--case", names[0]) == 0
    assert typed(home, "import", str(folder), "--case", names[1], "--test") == 0
    with CaseStore(home.site / STORE) as store:
        assert store.cases("stream") == (names[2], names[0])
        assert store.cases("test") == (names[1],)


def test_import_names_what_cannot_be_used(tmp_path: Path, home: SiteHome, capfd: pytest.CaptureFixture[str]) -> None:
    first, label = phantom(tmp_path, 1)
    labels = read_labels(label)
    other = tmp_path / "other.nii.gz"
    write_volume(other, labels.with_array(labels.array[::-1]))
    assert typed(home, "import", str(first), "--test") == UsageError.exit_code
    assert typed(home, "import", str(tmp_path / "gone.nii.gz")) == DataError.exit_code
    assert typed(home, "import", str(first), "--case", "x") == UsageError.exit_code
    assert typed(home, "import", str(tmp_path), "--label", str(label)) == DataError.exit_code  # no DICOM in it
    assert typed(home, "import", str(first), "--label", str(label)) == 0
    capfd.readouterr()
    assert typed(home, "import", str(first), "--label", str(other)) == DataError.exit_code
    assert "another label" in capfd.readouterr().err


def test_remove_takes_a_case_out_and_says_what_stays(
    home: SiteHome, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with CaseStore(home.site / "store") as store:
        store.add_case("one", Volume(np.ones((3, 4, 5), np.float32), np.eye(4)))
    monkeypatch.setattr("typer.confirm", lambda *_: False)
    assert typed(home, "remove", "one") != 0
    with CaseStore(home.site / "store") as store:
        assert store.cases() == ("one",)
    assert typed(home, "remove", "one", "--yes") == 0
    assert "stays learnt" in " ".join(capfd.readouterr().out.split())
    with CaseStore(home.site / "store") as store:
        assert store.cases() == ()
    assert typed(home, "remove", "one", "--yes") != 0
    assert "no case one" in capfd.readouterr().err


def test_status_pause_resume_and_leave_without_an_agent(home: SiteHome, capfd: pytest.CaptureFixture[str]) -> None:
    for words, state in ((("pause",), "paused"), (("resume",), "active"), (("leave", "--yes"), "left")):
        assert typed(home, *words) == 0
        assert home.participation == state
    capfd.readouterr()
    assert typed(home, "status") == 0
    said = capfd.readouterr().out
    assert "has left the federation" in said
    assert "not running" in said
    assert typed(home, "status", "--json") == 0
    assert json.loads(capfd.readouterr().out)["participation"] == "left"


def test_status_pause_and_resume_of_an_agent_that_serves(living: SiteHome, capfd: pytest.CaptureFixture[str]) -> None:
    with agent_process(living) as process:
        assert typed(living, "pause") == 0
        with pytest.raises(GateRefused, match="paused"):
            ask(living, "evaluate", plan())
        capfd.readouterr()
        assert typed(living, "status", "--json") == 0
        about = json.loads(capfd.readouterr().out)
        assert (about["serving"], about["participation"], about["pid"]) == (True, "paused", process.pid)
        assert about["counts"]["cases"] == 2
        assert typed(living, "resume") == 0
        ask(living, "evaluate", plan())
        # Cases come in while the agent serves.
        (living.path / "new").mkdir()
        image, label = phantom(living.path / "new", 5)
        assert typed(living, "import", str(image), "--label", str(label)) == 0
        capfd.readouterr()
        assert typed(living, "status") == 0
        said = capfd.readouterr().out
        assert "takes part" in said
        assert "3 held" in said
    assert typed(living, "audit") == 0
    said = capfd.readouterr().out
    assert "the site is paused" in said
    assert "came in" in said


def test_audit_shows_and_verifies(home: SiteHome, capfd: pytest.CaptureFixture[str]) -> None:
    assert typed(home, "audit") == 0
    assert "nothing came in" in capfd.readouterr().out
    gate = Gate(home.path)
    for _ in range(3):
        with pytest.raises(GateRefused):
            gate.admit_app("0" * 64, None)
    assert typed(home, "audit", "--last", "2") == 0
    assert capfd.readouterr().out.count("nobody has approved") == 2
    assert typed(home, "audit", "--json", "--last", "0") == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["number"] for line in lines] == [1, 2, 3]
    assert typed(home, "audit", "--verify") == 0
    assert "3 lines" in capfd.readouterr().out
    text = home.ledger.read_text()
    home.ledger.write_text(text.replace('"app"', '"train"', 1))
    assert typed(home, "audit", "--verify") == StorageError.exit_code
    assert "damaged" in capfd.readouterr().err
    assert typed(home, "audit", "--set-aside") == 0
    assert typed(home, "audit", "--verify") == 0


def test_a_bundle_is_shown_approved_and_revoked(
    tmp_path: Path, home: SiteHome, capfd: pytest.CaptureFixture[str]
) -> None:
    assert typed(home, "approve") == 0
    assert "no bundle is known" in capfd.readouterr().out
    fab = write_bundle(tmp_path / "bundle")
    digest = fab.stem
    assert typed(home, "approve", "--file", str(fab), "--show") == 0
    said = capfd.readouterr().out
    assert digest in said
    assert "wardround.server.app:app" in said
    gate = Gate(home.path)
    with pytest.raises(GateRefused, match="nobody has approved"):
        gate.admit_app(digest, fab.read_bytes())
    assert typed(home, "approve", digest[:8], "--by", "Dr Reviewer", "--days", "30") == 0
    gate.admit_app(digest, fab.read_bytes())
    capfd.readouterr()
    assert typed(home, "approve") == 0
    listed = capfd.readouterr().out
    assert "Dr Reviewer" in listed
    assert "approved" in listed
    assert typed(home, "approve", digest, "--revoke") == 0
    assert Approvals(home.path).find(digest).state == "revoked"
    with pytest.raises(GateRefused, match="taken back"):
        gate.admit_app(digest, fab.read_bytes())


def test_the_latest_model_is_exported_for_monai(
    living: SiteHome, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bundle"
    assert typed(living, "export-model", str(folder)) == UsageError.exit_code
    assert "took part in no round yet" in capfd.readouterr().err
    of_round = plan(round=2)
    weights = weights_of(build(of_round.model, of_round.labels, seed=1))
    LatestModel(living.site / "model").save(of_round, weights)
    assert typed(living, "export-model", str(folder)) == 0
    about = json.loads((folder / "configs" / "metadata.json").read_text())["wardround"]
    assert (about["run"], about["round"], about["weights-sha256"]) == (of_round.run, 2, weights_digest(weights))
    assert typed(living, "export-model", str(folder)) == StorageError.exit_code
