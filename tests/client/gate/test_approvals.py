"""Who may run what at a site: deciding, showing what is decided on, and everything that must not count as a yes."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest
from bundles import PROJECT, Clock, pack, sha256

from wardround.client.gate.approvals import MAX_PENDING, Approvals
from wardround.client.gate.ledger import Ledger
from wardround.errors import GateRefused, StorageError, UsageError

DAY = 24 * 3600.0
OTHER = PROJECT.replace(b'version = "1.0.0"', b'version = "1.0.1"')
CODE = {"pyproject.toml": PROJECT, "app.py": b"import os\nos.system('id')\n"}


@pytest.fixture
def approvals(home: Path, clock: Clock) -> Approvals:
    return Approvals(home, clock)


def numbered(number: int) -> bytes:
    return pack({"pyproject.toml": PROJECT, "a.md": str(number).encode()})


class TestDeciding:
    def test_a_bundle_waits_until_somebody_approves_it(self, approvals: Approvals, clock: Clock, home: Path) -> None:
        fab = pack()
        kept = approvals.keep(fab)
        assert (kept.sha256, kept.state, kept.name, kept.flags) == (
            sha256(fab),
            "pending",
            "wardround/rounds 1.0.0",
            (),
        )
        assert approvals.pending() == (kept,)
        assert not approvals.is_approved(kept.sha256, clock())
        clock.now += 60
        approved = approvals.approve(kept.sha256, "Ada")
        assert (approved.state, approved.by, approved.decided) == ("approved", "Ada", clock())
        assert approved.seen == clock() - 60
        assert approvals.pending() == ()
        assert approvals.is_approved(kept.sha256, clock())
        assert Approvals(home, clock).is_approved(kept.sha256, clock())

    def test_every_decision_is_a_line_in_the_ledger(self, approvals: Approvals, clock: Clock, home: Path) -> None:
        ledger = Ledger(home / "ledger.jsonl", clock)
        kept = approvals.keep(pack())
        assert list(ledger.entries()) == []
        approvals.approve(kept.sha256, "Ada Lovelace, Ward 3 – Zürich")
        clock.now += 60
        approvals.revoke(kept.sha256, "Grace")
        said = [(line.direction, line.kind, line.code, line.sha256, line.by) for line in ledger.entries()]
        assert said == [
            ("none", "app", "approved", kept.sha256, "Ada Lovelace, Ward 3 – Zürich"),
            ("none", "app", "revoked", kept.sha256, "Grace"),
        ]
        first, second = (datetime.fromisoformat(line.time).timestamp() for line in ledger.entries())
        assert (first, second) == (clock() - 60, clock())
        assert ledger.verify().ok
        text = ledger.path.read_text()
        ledger.path.write_text(text.replace("Grace", "Heidi"))
        assert not ledger.verify().ok

    def test_what_is_refused_leaves_no_line_of_a_decision(self, approvals: Approvals, home: Path) -> None:
        code = approvals.keep(pack(CODE))
        with pytest.raises(GateRefused):
            approvals.approve(code.sha256, "Ada")
        with pytest.raises(UsageError):
            approvals.approve(approvals.keep(pack()).sha256, " ")
        with pytest.raises(UsageError):
            approvals.revoke(sha256(b""), "Ada")
        assert not (home / "ledger.jsonl").exists()

    def test_a_damaged_ledger_lets_nothing_be_approved_and_everything_be_revoked(
        self, approvals: Approvals, clock: Clock, home: Path
    ) -> None:
        one, other = approvals.keep(numbered(1)), approvals.keep(numbered(2))
        approvals.approve(one.sha256, "Ada")
        path = home / "ledger.jsonl"
        path.write_text(path.read_text().replace("Ada", "Eve"))
        approvals = Approvals(home, clock)
        with pytest.raises(StorageError):
            approvals.approve(other.sha256, "Ada")
        assert not approvals.is_approved(other.sha256, clock())
        with pytest.raises(StorageError, match="may run no longer"):
            approvals.revoke(one.sha256, "Ada")
        assert not approvals.is_approved(one.sha256, clock())

    def test_what_is_not_known_is_not_approved(self, approvals: Approvals, clock: Clock) -> None:
        assert not approvals.is_approved(sha256(b""), clock())
        with pytest.raises(UsageError):
            approvals.approve(sha256(b""), "Ada")
        with pytest.raises(UsageError):
            approvals.revoke(sha256(b""), "Ada")
        with pytest.raises(UsageError):
            approvals.diff(sha256(b""))

    def test_an_approval_ends_with_the_days_of_the_policy(self, approvals: Approvals, clock: Clock, home: Path) -> None:
        (home / "policy.toml").write_text("approval-days = 10")
        kept = approvals.keep(pack())
        began = clock()
        assert approvals.approve(kept.sha256, "Ada").expires == began + 10 * DAY
        assert approvals.is_approved(kept.sha256, began + 10 * DAY - 1)
        assert not approvals.is_approved(kept.sha256, began + 10 * DAY)
        assert not approvals.is_approved(kept.sha256, began - 1)
        assert approvals.approve(kept.sha256, "Ada", days=1).expires == began + DAY

    def test_an_approval_is_taken_back_and_given_again(self, approvals: Approvals, clock: Clock) -> None:
        kept = approvals.keep(pack())
        approvals.approve(kept.sha256, "Ada")
        assert approvals.revoke(kept.sha256, "Grace").by == "Grace"
        assert not approvals.is_approved(kept.sha256, clock())
        assert approvals.keep(pack()).state == "revoked"
        approvals.approve(kept.sha256, "Ada")
        assert approvals.is_approved(kept.sha256, clock())

    def test_code_is_approved_only_by_who_knows_it(self, approvals: Approvals, clock: Clock) -> None:
        kept = approvals.keep(pack(CODE))
        assert kept.flags == ("code",)
        with pytest.raises(GateRefused) as refused:
            approvals.approve(kept.sha256, "Ada")
        assert refused.value.code == "bundle-code"
        assert not approvals.is_approved(kept.sha256, clock())
        assert approvals.approve(kept.sha256, "Ada", with_code=True).with_code
        assert approvals.is_approved(kept.sha256, clock())

    def test_a_package_that_replaces_ours_is_never_approved(self, approvals: Approvals, clock: Clock) -> None:
        kept = approvals.keep(pack({"pyproject.toml": PROJECT, "wardround/client/app.py": b""}))
        with pytest.raises(GateRefused) as refused:
            approvals.approve(kept.sha256, "Ada", with_code=True)
        assert refused.value.code == "bundle-shadows"
        assert not approvals.is_approved(kept.sha256, clock())

    def test_what_is_hostile_is_not_kept(self, approvals: Approvals, home: Path) -> None:
        with pytest.raises(GateRefused):
            approvals.keep(pack(manifest=b""))
        assert approvals.listing() == ()
        assert not (home / "bundles").exists()

    def test_the_oldest_of_too_many_is_forgotten(self, approvals: Approvals, home: Path) -> None:
        chosen = approvals.keep(numbered(-1))
        approvals.approve(chosen.sha256, "Ada")
        kept = [approvals.keep(numbered(number)) for number in range(MAX_PENDING + 3)]
        assert approvals.pending() == tuple(kept[3:])
        files = {file.stem for file in (home / "bundles").iterdir()}
        assert files == {chosen.sha256, *(each.sha256 for each in kept[3:])}

    def test_a_bundle_is_found_by_the_beginning_of_its_name(self, approvals: Approvals) -> None:
        kept = approvals.keep(pack())
        assert approvals.find(kept.sha256[:8].upper()) == kept
        for wrong in ("", kept.sha256[:7], "zzzzzzzz", sha256(b"")):
            with pytest.raises(UsageError):
                approvals.find(wrong)

    @pytest.mark.parametrize("by", ["", "  ", "\n"])
    def test_somebody_decides(self, approvals: Approvals, by: str) -> None:
        kept = approvals.keep(pack())
        with pytest.raises(UsageError):
            approvals.approve(kept.sha256, by)

    def test_no_policy_no_approval(self, approvals: Approvals, home: Path, clock: Clock) -> None:
        kept = approvals.keep(pack())
        (home / "policy.toml").unlink()
        with pytest.raises(UsageError):
            approvals.approve(kept.sha256, "Ada")
        assert not approvals.is_approved(kept.sha256, clock())


class TestFiles:
    @pytest.mark.parametrize(
        "text",
        [
            b"",
            b"[]",
            b"\xff",
            b'{"format": 2, "bundles": []}',
            b'{"format": 1, "bundles": [{"state": "approved"}]}',
            b'{"format": 1, "bundles": [], "all": true}',
        ],
    )
    def test_a_damaged_list_approves_nothing(self, approvals: Approvals, home: Path, clock: Clock, text: bytes) -> None:
        kept = approvals.keep(pack())
        approvals.approve(kept.sha256, "Ada")
        (home / "approvals.json").write_bytes(text)
        with pytest.raises(StorageError):
            approvals.is_approved(kept.sha256, clock())
        with pytest.raises(StorageError):
            approvals.keep(numbered(1))
        assert (home / "approvals.json").read_bytes() == text

    @pytest.mark.parametrize("change", [{"expires": None}, {"decided": None}, {"state": "pending"}])
    def test_half_an_approval_is_none(
        self, approvals: Approvals, home: Path, clock: Clock, change: dict[str, object]
    ) -> None:
        kept = approvals.keep(pack())
        approvals.approve(kept.sha256, "Ada")
        values = json.loads((home / "approvals.json").read_text())
        values["bundles"][0] |= change
        (home / "approvals.json").write_text(json.dumps(values))
        assert not approvals.is_approved(kept.sha256, clock())

    def test_bytes_that_changed_are_not_shown_and_not_approved(self, approvals: Approvals, home: Path) -> None:
        kept = approvals.keep(pack())
        file = home / "bundles" / f"{kept.sha256}.fab"
        file.write_bytes(numbered(1))
        for ask in (approvals.bundle, approvals.diff, lambda digest: approvals.approve(digest, "Ada")):
            with pytest.raises(StorageError):
                ask(kept.sha256)
        approvals.keep(pack())
        assert approvals.bundle(kept.sha256).files == {"pyproject.toml": PROJECT}
        file.unlink()
        with pytest.raises(StorageError):
            approvals.bundle(kept.sha256)
        approvals.keep(pack())
        assert approvals.bundle(kept.sha256).files == {"pyproject.toml": PROJECT}

    def test_only_the_owner_may_read_them(self, approvals: Approvals, home: Path) -> None:
        approvals.keep(pack())
        files = [file for file in home.rglob("*") if file.is_file() and file.name != "policy.toml"]
        assert len(files) == 3
        assert {file.stat().st_mode & 0o777 for file in files} == {0o600}

    def test_many_at_once_lose_nothing(self, home: Path, clock: Clock) -> None:
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda number: Approvals(home, clock).keep(numbered(number)), range(12)))
        assert len(Approvals(home, clock).listing()) == 12

    def test_a_full_disk_is_said(self, approvals: Approvals, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="full"):
            approvals.keep(pack())
        assert approvals.listing() == ()


class TestShowing:
    def test_the_first_bundle_is_shown_whole(self, approvals: Approvals) -> None:
        kept = approvals.keep(pack({"pyproject.toml": PROJECT, "README.md": b"one\ntwo\n"}))
        shown = approvals.diff(kept.sha256)
        assert kept.sha256 in shown
        assert "no bundle was approved before" in shown
        assert "brings  no code" in shown
        assert "--- /dev/null\n+++ b/README.md\n@@ -0,0 +1,3 @@\n+one\n+two\n" in shown
        assert all(f"+{line}" in shown.splitlines() for line in PROJECT.decode().splitlines())

    def test_a_later_one_is_shown_against_the_one_approved_last(self, approvals: Approvals, clock: Clock) -> None:
        first = approvals.keep(pack({"pyproject.toml": PROJECT, "gone.md": b"bye"}))
        approvals.approve(first.sha256, "Ada")
        never = approvals.keep(numbered(1))
        clock.now += 1
        new = approvals.keep(pack({"pyproject.toml": OTHER, "app.py": b"import os\n"}))
        shown = approvals.diff(new.sha256)
        assert f"against {first.sha256}" in shown
        assert never.sha256 not in shown
        assert "brings  code" in shown
        assert '-version = "1.0.0"\n+version = "1.0.1"' in shown
        assert "--- a/gone.md\n+++ /dev/null" in shown
        assert "+import os" in shown
        assert "+publisher" not in shown

    def test_what_was_taken_back_is_no_measure(self, approvals: Approvals) -> None:
        first = approvals.keep(pack())
        approvals.approve(first.sha256, "Ada")
        approvals.revoke(first.sha256, "Ada")
        new = approvals.keep(numbered(1))
        assert "no bundle was approved before" in approvals.diff(new.sha256)

    def test_the_same_files_in_another_archive(self, approvals: Approvals) -> None:
        first = approvals.keep(pack())
        approvals.approve(first.sha256, "Ada")
        again = approvals.keep(pack(compression=0))
        assert "no file differs" in approvals.diff(again.sha256)

    def test_nothing_hides_from_who_reads_it(self, approvals: Approvals) -> None:
        text = "a\x1b[1A\x1b[2Kb\rc\u202egnp.exe\u200bz\u2028d\x85e\x00f\tgr\u00fcn\n".encode()
        kept = approvals.keep(pack({"pyproject.toml": PROJECT, "a.md": text}))
        shown = approvals.diff(kept.sha256)
        assert r"+a\x1b[1A\x1b[2Kb\rc\u202egnp.exe\u200bz\u2028d\x85e\x00f" + "\tgr\u00fcn" in shown
        assert all(character.isprintable() or character in "\n\t" for character in shown)

    def test_what_is_no_text_is_named_by_its_digest(self, approvals: Approvals) -> None:
        kept = approvals.keep(pack({"pyproject.toml": PROJECT, "fast.so": b"\x7fELF\xff"}))
        shown = approvals.diff(kept.sha256)
        assert sha256(b"\x7fELF\xff") in shown
        assert "5 bytes" in shown

    @pytest.mark.timeout(60)
    def test_a_long_file_is_shown_whole_and_soon(self, approvals: Approvals) -> None:
        """Line by line the two would take hours to compare, and what is cut out of a comparison could hide there."""
        first = approvals.keep(pack({"pyproject.toml": PROJECT, "a.md": b"a\nb\n" * 10_000}, compression=0))
        approvals.approve(first.sha256, "Ada")
        lines = b"b\na\n" * 10_000 + b"last\n"
        new = approvals.keep(pack({"pyproject.toml": PROJECT, "a.md": lines}, compression=0))
        assert "+last" in approvals.diff(new.sha256).splitlines()
