"""The operator's commands as they are typed; nobody serves here."""

import datetime
import hashlib
import json
import re
import stat
from pathlib import Path

import pytest
from coordinating import NOW, close_rounds
from cryptography import x509

from wardround.deploy.cli import run as command_line
from wardround.deploy.coordinator import runs
from wardround.deploy.provisioning import make_enrolment, make_node_key, read_invitation
from wardround.deploy.provisioning.authority import certificate_facts, server_certificate_fits
from wardround.deploy.provisioning.keys import fingerprint
from wardround.server.home import CoordinatorHome, hold
from wardround.server.journal import Journal, RoundRecord


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CoordinatorHome:
    monkeypatch.chdir(tmp_path)
    assert command_line(["coordinator", "init", "--name", "fed.example.org", "--name", "10.0.0.5"]) == 0
    return CoordinatorHome(tmp_path / "coordinator")


def test_a_new_home_can_be_used_and_keeps_its_secrets(place: CoordinatorHome) -> None:
    assert place.settings.url == "https://fed.example.org:8443"
    assert stat.S_IMODE(place.path.stat().st_mode) == 0o700
    for private in (place.operator_token, place.superexec_secret, place.ca / "ca.key", place.server_key):
        assert stat.S_IMODE(private.stat().st_mode) == 0o600
    # The SuperLink takes the secret byte for byte, and refuses a short one.
    assert re.fullmatch(r"[A-Za-z0-9_-]{32,}", place.superexec_secret.read_text())
    assert place.operator_token.read_text() != place.superexec_secret.read_text()


def test_a_home_is_never_overwritten(place: CoordinatorHome, capfd: pytest.CaptureFixture[str]) -> None:
    before = place.ca_certificate.read_bytes()
    assert command_line(["coordinator", "init", "--name", "other.example.org"]) == 2
    assert "never overwritten" in capfd.readouterr().err
    assert place.ca_certificate.read_bytes() == before


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`--home .` would close somebody's folder to everybody else and mix keys with what is there."""
    (tmp_path / "thesis.tex").touch()
    tmp_path.chmod(0o755)
    assert command_line(["coordinator", "init", "--name", "fed.example.org", "--home", str(tmp_path)]) == 2
    assert "is not empty" in capfd.readouterr().err
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_attempt_that_was_cut_off_is_taken_up_again(tmp_path: Path) -> None:
    home = CoordinatorHome(tmp_path / "c")
    arguments = ["coordinator", "init", "--name", "fed.example.org", "--home", str(home.path)]
    assert command_line(arguments) == 0
    before = home.ca_certificate.read_bytes()
    home.settings_file.unlink()
    assert command_line(arguments) == 0
    assert home.ca_certificate.read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["--name", "a b"],
        ["--name", "fed.example.org", "--url", "http://fed.example.org:80"],
        ["--name", "fed.example.org", "--url", 'https://fed"example.org:443'],
        ["--name", "fed.example.org", "--port", "70000"],
        ["--name", "fed.example.org", "--port", "8444"],
        ["--name", "fed.example.org", "--quorum", "0"],
        [],
    ],
)
def test_options_that_cannot_work_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command_line(["coordinator", "init", *arguments]) == 2
    err = capfd.readouterr().err
    assert "problem" in err
    assert "fix" in err
    assert list(tmp_path.iterdir()) == []


def test_an_address_is_a_name_too(tmp_path: Path) -> None:
    home = tmp_path / "c"
    assert command_line(["coordinator", "init", "--home", str(home), "--name", "fd00::1"]) == 0
    assert CoordinatorHome(home).settings.url == "https://[fd00::1]:8443"


def test_the_home_may_stand_in_the_environment(
    place: CoordinatorHome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert command_line(["coordinator", "status"]) == 3
    monkeypatch.setenv("WARDROUND_COORDINATOR", str(place.path))
    assert command_line(["coordinator", "status"]) == 0


def test_a_site_is_invited_enrolled_and_evicted(
    place: CoordinatorHome, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command_line(["coordinator", "invite", "north"]) == 0
    invitation = read_invitation(tmp_path / "north.invitation.json")
    assert invitation.fingerprint in capfd.readouterr().out
    assert invitation.coordinator == place.settings.url
    enrolment = tmp_path / "enrolment.json"
    enrolment.write_bytes(make_enrolment(invitation, make_node_key(tmp_path / "keys")))
    assert command_line(["coordinator", "enrol", str(enrolment)]) == 0
    out = capfd.readouterr().out
    assert "as soon as `wardround coordinator serve` runs" in out
    assert fingerprint((tmp_path / "keys" / "node.pub").read_text()) in out
    assert command_line(["coordinator", "status"]) == 0
    assert "enrolled" in capfd.readouterr().out
    assert command_line(["coordinator", "evict", "north"]) == 0
    assert command_line(["coordinator", "enrol", str(enrolment)]) == 10


def test_the_servers_certificate_is_made_anew(place: CoordinatorHome, capfd: pytest.CaptureFixture[str]) -> None:
    authority, before = place.ca_certificate.read_bytes(), place.server_certificate.read_bytes()
    capfd.readouterr()
    assert command_line(["coordinator", "renew"]) == 0
    assert "as soon as `wardround coordinator serve` runs" in capfd.readouterr().out
    assert place.ca_certificate.read_bytes() == authority
    after = place.server_certificate.read_bytes()
    assert certificate_facts(after).fingerprint != certificate_facts(before).fingerprint
    assert {"fed.example.org", "10.0.0.5"} <= set(certificate_facts(after).names)
    assert server_certificate_fits(place.tls, place.settings.names, datetime.datetime.now(datetime.UTC))
    x509.load_pem_x509_certificate(after).verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
    assert stat.S_IMODE(place.server_key.stat().st_mode) == 0o600


def test_without_the_authoritys_key_nothing_is_renewed(
    place: CoordinatorHome, capfd: pytest.CaptureFixture[str]
) -> None:
    """As where it is kept offline: what serves stays as it is."""
    before = {path.name: path.read_bytes() for path in place.tls.iterdir()}
    (place.ca / "ca.key").unlink()
    assert command_line(["coordinator", "renew"]) == 4
    assert "ca.key" in capfd.readouterr().err
    assert {path.name: path.read_bytes() for path in place.tls.iterdir()} == before


def test_a_certificate_that_is_not_taken_up_is_said(
    place: CoordinatorHome, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wardround.deploy.coordinator.command._PATIENCE_S", 0.0)
    with hold(place.serve_lock):
        assert command_line(["coordinator", "renew"]) == 9
    assert "not shown yet" in capfd.readouterr().err


def test_what_is_said_is_not_dressed_up(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # Brackets would be markup, and every fourth fingerprint holds the name of a picture such as `:AB:`.
    home = tmp_path / "[bold]"
    assert command_line(["coordinator", "init", "--home", str(home), "--name", "fed.example.org"]) == 0
    out = capfd.readouterr().out
    assert str(home) in out
    assert re.search(r"^  (?:[0-9A-F]{2}:){31}[0-9A-F]{2}$", out, re.MULTILINE)


def test_an_invitation_is_not_written_over_another(place: CoordinatorHome, tmp_path: Path) -> None:
    assert command_line(["coordinator", "invite", "north"]) == 0
    before = (tmp_path / "north.invitation.json").read_bytes()
    assert command_line(["coordinator", "invite", "north"]) == 2
    assert (tmp_path / "north.invitation.json").read_bytes() == before
    assert command_line(["coordinator", "invite", "north", "--out", str(tmp_path / "again.json")]) == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["invite", "../north"], 2),
        (["enrol", "absent.json"], 3),
        (["evict", "nobody"], 2),
        (["stop", "nothing"], 2),
        (["export", "nothing", "out"], 2),
        (["rollback", "nothing", "1"], 2),
        (["run", "../x"], 2),
        (["run", "x", "--resume"], 2),
        (["run", "x", "--plan", "nonsense=1"], 5),
        (["run", "x", "--plan", "run=other"], 2),
        (["run", "x", "--strategy", "magic"], 2),
        (["run", "x", "--setting", "quorum=many"], 5),
        (["run", "x", "--rounds", "0"], 2),
        (["run", "x", "--model", "gpt"], 2),
    ],
)
def test_mistakes_end_with_their_exit_code(
    place: CoordinatorHome, capfd: pytest.CaptureFixture[str], arguments: list[str], code: int
) -> None:
    assert command_line(["coordinator", *arguments]) == code
    err = capfd.readouterr().err
    assert "problem" in err
    assert "Traceback" not in err
    assert runs.all_runs(place) == []


def test_a_run_waits_until_somebody_serves(place: CoordinatorHome, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--rounds", "3", "--plan", "allocation=1,2,1", "--strategy", "fedavgm"]
    arguments += ["--strategy-option", "server_momentum=0.5", "--deadline", "60"]
    assert command_line(["coordinator", "run", "study", *arguments]) == 0
    assert "as soon as" in capfd.readouterr().out
    found = runs.find(place, "study")
    assert found.request.settings["allocation"] == [1, 2, 1]
    assert found.request.settings["strategy-options.server-momentum"] == 0.5
    assert found.request.settings["quorum"] == 2
    assert command_line(["coordinator", "run", "study"]) == 2
    assert "--resume" in capfd.readouterr().err


def test_what_was_asked_for_is_what_the_server_reads(place: CoordinatorHome) -> None:
    from wardround.server.app import read_settings

    assert command_line(["coordinator", "run", "study", "--plan", "allocation=1,2,1"]) == 0
    found = runs.find(place, "study")
    settings = read_settings({**found.request.settings, "output": str(found.folder)})
    assert settings.plan.allocation == (1, 2, 1)
    assert settings.plan.run == "study"
    assert settings.loop.quorum == 2


def test_a_run_is_stopped_and_wanted_again(place: CoordinatorHome, capfd: pytest.CaptureFixture[str]) -> None:
    assert command_line(["coordinator", "run", "study"]) == 0
    assert command_line(["coordinator", "stop", "study"]) == 0
    assert not runs.find(place, "study").request.wanted
    runs.find(place, "study").save_state(NOW, phase="stopped", wish=2)
    assert command_line(["coordinator", "stop", "study"]) == 2
    assert command_line(["coordinator", "run", "study", "--resume", "--rounds", "9"]) == 2
    assert "--rounds" in capfd.readouterr().err
    assert command_line(["coordinator", "run", "study", "--resume"]) == 0
    assert runs.find(place, "study").phase == "queued"


def test_a_run_that_was_stopped_while_nobody_served_goes_on_when_it_is_wanted(place: CoordinatorHome) -> None:
    assert command_line(["coordinator", "run", "study"]) == 0
    runs.find(place, "study").save_state(NOW, phase="running", wish=1)
    assert command_line(["coordinator", "stop", "study"]) == 0
    assert command_line(["coordinator", "run", "study", "--resume"]) == 0
    found = runs.find(place, "study")
    assert found.request.wanted
    assert found.phase == "queued"


def test_status_shows_runs_and_their_scores(place: CoordinatorHome, capfd: pytest.CaptureFixture[str]) -> None:
    assert command_line(["coordinator", "run", "study", "--rounds", "3"]) == 0
    close_rounds(runs.find(place, "study"), 3)
    capfd.readouterr()
    assert command_line(["coordinator", "status"]) == 0
    out = capfd.readouterr().out
    assert "3 of 3" in out
    assert "0.800" in out


def test_a_run_is_watched_to_its_end(place: CoordinatorHome, capfd: pytest.CaptureFixture[str]) -> None:
    assert command_line(["coordinator", "run", "study", "--rounds", "3"]) == 0
    found = runs.find(place, "study")
    close_rounds(found, 3)
    found.save_state(NOW, phase="finished", wish=1)
    with hold(place.serve_lock):
        assert command_line(["coordinator", "run", "study", "--resume"]) == 0
    assert "finished" in capfd.readouterr().out


def test_a_run_that_failed_ends_with_its_own_exit_code(
    place: CoordinatorHome, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command_line(["coordinator", "run", "study"]) == 0
    found = runs.find(place, "study")
    content = {"error": "StorageError", "exit-code": 4, "problem": "cannot write", "cause": "full", "fix": "make room"}
    (found.folder / "error.json").write_text(json.dumps(content))
    from wardround.deploy.coordinator.follow import own_error

    assert own_error(found).exit_code == 4
    assert "make room" in own_error(found).fix
    assert "--resume" in own_error(found).fix


def test_one_serves_at_a_time(place: CoordinatorHome, capfd: pytest.CaptureFixture[str]) -> None:
    with hold(place.serve_lock):
        assert command_line(["coordinator", "serve"]) == 2
    assert "already" in capfd.readouterr().err


def test_weights_and_card_are_exported(place: CoordinatorHome, tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import load_file

    assert command_line(["coordinator", "run", "study", "--rounds", "3"]) == 0
    close_rounds(runs.find(place, "study"), 3)
    out = tmp_path / "model"
    # Also while its server is at work.
    with Journal(place.run_folder("study")):
        assert command_line(["coordinator", "export", "study", str(out)]) == 0
    np.testing.assert_array_equal(load_file(out / "model.safetensors")["weight"], np.full((2, 3), 3))
    card = json.loads((out / "card.json").read_text())
    assert (card["round"], card["dice"]) == (3, pytest.approx(0.8))
    assert "| south | 4 | 3 | 0.900 |" in (out / "card.md").read_text()
    assert command_line(["coordinator", "export", "study", str(out)]) == 2
    assert command_line(["coordinator", "export", "study", str(tmp_path / "two"), "--round", "9"]) == 2
    assert command_line(["coordinator", "export", "study", str(tmp_path / "two"), "--round", "2"]) == 0


def test_what_travelled_beside_the_weights_is_not_exported(place: CoordinatorHome, tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import load_file

    from wardround.models.weights import OPERATORS

    assert command_line(["coordinator", "run", "study", "--rounds", "1"]) == 0
    weights = {"weight": np.ones((2, 3), np.float32), OPERATORS: np.zeros((3, 3), np.float32)}
    with Journal(place.run_folder("study")) as journal:
        journal.write(RoundRecord(1, "plan", {}), weights, {})
    assert command_line(["coordinator", "export", "study", str(tmp_path / "model")]) == 0
    assert set(load_file(tmp_path / "model" / "model.safetensors")) == {"weight"}
    card = json.loads((tmp_path / "model" / "card.json").read_text())
    data = (tmp_path / "model" / "model.safetensors").read_bytes()
    assert card["weights"]["sha256"] == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("strategy", ["fedavg", "fedper"])
def test_a_card_says_where_a_network_is_not_whole(place: CoordinatorHome, tmp_path: Path, strategy: str) -> None:
    assert command_line(["coordinator", "run", "study", "--rounds", "3", "--strategy", strategy]) == 0
    close_rounds(runs.find(place, "study"), 3)
    assert command_line(["coordinator", "export", "study", str(tmp_path / "model")]) == 0
    card = json.loads((tmp_path / "model" / "card.json").read_text())
    text = (tmp_path / "model" / "card.md").read_text()
    assert card["stays-at-sites"] == (["model.2.*"] if strategy == "fedper" else [])
    assert ("`model.2.*` stay at each" in text) == (strategy == "fedper") != ("load_weights" in text)


def test_a_run_goes_back_to_a_former_round(place: CoordinatorHome) -> None:
    assert command_line(["coordinator", "run", "study", "--rounds", "3"]) == 0
    found = runs.find(place, "study")
    close_rounds(found, 3)
    assert command_line(["coordinator", "rollback", "study", "2"]) == 2
    found.save_state(NOW, phase="finished", wish=1)
    assert command_line(["coordinator", "rollback", "study", "3"]) == 2
    assert command_line(["coordinator", "rollback", "study", "9"]) == 2
    assert command_line(["coordinator", "rollback", "study", "2"]) == 0
    assert [record.round for record in found.rounds()] == [1, 2]
    assert not found.complete
    # What came after it is still there to be looked at.
    assert list((found.folder / "generations").rglob("global.safetensors"))
    assert command_line(["coordinator", "run", "study", "--resume"]) == 0
    assert runs.find(place, "study").phase == "queued"
