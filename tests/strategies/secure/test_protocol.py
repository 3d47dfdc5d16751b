"""The whole protocol: exact for 3 to 50 sites whoever drops out when, and closed to a coordinator that lies."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from wardround.errors import GateRefused
from wardround.strategies.plan import RoundPlan
from wardround.strategies.secure import messages, tally
from wardround.strategies.secure.fixed_point import Sum
from wardround.strategies.secure.identity import new_identity
from wardround.strategies.secure.masks import Pair
from wardround.strategies.secure.messages import Offer, write_names, write_roster, write_table
from wardround.strategies.secure.party import Party, Rules, pair_key, self_key, threshold_of

Some = Callable[..., Any]
PHASES = ("keys", "shares", "mask", "confirm", "unmask")


def run(table: Any, dropouts: dict[str, list[str]]) -> Sum:
    for phase in PHASES:
        getattr(table, phase)(dropouts.get(phase, ()))
    return table.sum()


def check(table: Any, found: Sum) -> None:
    """Equal to the mean in the open, to half a step."""
    plain = table.plain_mean()
    for name, array in table.given.items():
        if array.dtype.kind == "f":
            assert np.abs(found.mean[name] - plain[name]).max() <= 2.0**-21 * 1.001 < 1e-6
        else:
            assert found.mean[name] == pytest.approx(plain[name], abs=1e-12)
    assert found.examples == sum(table.updates[site][1] for site in table.masked)
    assert found.totals == {"loss": (0.5 * len(table.masked), len(table.masked))}


@pytest.mark.parametrize("count", [3, 4, 10, 50])
def test_all_stay(some: Some, count: int) -> None:
    table = some(count, seed=count)
    check(table, run(table, {}))
    assert len(table.masked) == count


@pytest.mark.parametrize(("count", "phase"), [*((5, phase) for phase in PHASES), (50, "mask"), (50, "unmask")])
def test_one_in_five_drops_out(some: Some, count: int, phase: str) -> None:
    table = some(count, seed=count)
    gone = list(table.updates)[::5]
    assert len(gone) == count // 5
    check(table, run(table, {phase: gone}))
    left = phase in ("keys", "shares", "mask")
    assert len(table.masked) == count - left * len(gone)
    assert len(table.reckoning.dropped) == (len(gone) if phase == "mask" else 0)


def test_one_in_five_spread_over_all_phases(some: Some) -> None:
    table = some(25, seed=3)
    check(table, run(table, {phase: [f"site-{place:02d}"] for place, phase in enumerate(PHASES)}))
    assert len(table.masked) == 22
    assert len(table.revealed) == 20


def test_every_choice_of_survivors_of_three_in_four(some: Some) -> None:
    for gone in range(4):
        table = some(4, seed=gone)
        check(table, run(table, {"mask": [f"site-{gone:02d}"]}))


@pytest.mark.parametrize(("sites", "share", "needed"), [(3, 2 / 3, 3), (4, 2 / 3, 3), (5, 2 / 3, 4), (6, 2 / 3, 5)])
def test_the_threshold_is_more_than_its_share(sites: int, share: float, needed: int) -> None:
    assert threshold_of(sites, share) == needed
    assert threshold_of(sites, 1.0) == sites


@pytest.mark.parametrize("phase", ["shares", "mask", "confirm"])
def test_below_the_threshold_the_sites_refuse(some: Some, phase: str) -> None:
    table = some(10)
    gone = list(table.updates)[:4]  # Seven are needed, six are left.
    with pytest.raises(GateRefused) as caught:
        run(table, {phase: gone})
    assert caught.value.code == {"confirm": "secure-signatures"}.get(phase, "secure-too-few")


def test_below_the_threshold_at_the_end_nothing_comes_out(some: Some) -> None:
    table = some(10)
    with pytest.raises(ValueError, match="7 are needed"):
        run(table, {"unmask": list(table.updates)[:4]})


def test_fewer_than_a_site_asks_for(some: Some) -> None:
    with pytest.raises(GateRefused) as caught:
        run(some(3, least=4), {})
    assert caught.value.code == "secure-too-few"


def test_one_masked_update_says_nothing(some: Some) -> None:
    """Of two sites with opposite updates, what each sends is the same to the eye, and differs every time."""
    first, second = some(3).keys().shares().mask(), some(3).keys().shares().mask()
    for site, data in first.masked.items():
        assert data != second.masked[site]
        # Uniform bytes: a fifth of a per mille of the update's own numbers at most is there by chance.
        assert len(set(data)) > 100


def test_the_sum_without_the_shares_of_a_self_mask_says_nothing(some: Some) -> None:
    """A masked update that came late, after its site was said to have dropped out: its own mask still covers it."""
    table = some(5)
    run(table, {"mask": ["site-04"]})
    late = table.parties["site-04"].mask(tally.dealt(table.given_shares, "site-04"), table.encoder("site-04"))
    # With the key that the others revealed, the coordinator can take every pair's mask away, and has this left:
    table.masked["site-04"] = late
    with pytest.raises((ValueError, KeyError)):
        table.sum()


# What a coordinator may try


def test_keys_of_another_round_are_refused(some: Some) -> None:
    old, now = some(4, plan="plan of round 1"), some(4, plan="plan of round 2")
    replayed = old.keys().offers["site-03"]
    mixed = write_roster([*(o for s, o in now.offers.items() if s != "site-03"), replayed])
    for site in ("site-00", "site-01", "site-02"):
        with pytest.raises(GateRefused) as caught:
            now.parties[site].share(mixed)
        assert caught.value.code == "secure-keys"
    with pytest.raises(ValueError, match="signed"):
        tally.read_offer(replayed.to_bytes(), "site-03", now.context)


def test_two_runs_of_the_same_plan_share_no_mask(some: Some) -> None:
    """Also where every secret were the same: two updates under one mask would tell their difference."""
    fields = {"round": 1, "rounds": 2, "seed": 3, "model": "unet3d-small", "labels": 3, "secure": True}
    roster, mine, other = some(3).keys().roster, Pair.fresh(), Pair.fresh()
    keys = set()
    for run in ("first", "second"):
        context = messages.context_of(RoundPlan(run=run, **fields).digest(), b"weights")
        session = messages.session_of(context, roster)
        keys |= {self_key(mine.private, session), pair_key(mine.private, other.public, session)}
    assert len(keys) == 4


def test_keys_of_another_attempt_at_the_same_round(some: Some) -> None:
    """They are signed for this round, but their site has newer ones, and nobody can seal for the others by them."""
    old, now = some(4), some(4)
    mixed = write_roster([*(o for s, o in now.offers.items() if s != "site-03"), old.offers["site-03"]])
    now.roster = mixed
    with pytest.raises(GateRefused) as caught:
        now.parties["site-03"].share(mixed)
    assert caught.value.code == "secure-session"
    now.shares(without=["site-03"])
    old.keys().shares()
    now.given_shares["site-03"] = old.given_shares["site-03"]
    with pytest.raises(GateRefused) as caught:
        now.mask()
    assert caught.value.code == "secure-keys"


@pytest.mark.parametrize("name", ["conv.weight", "norm.count"])
def test_sites_that_were_given_other_weights_are_not_added_up(some: Some, name: str) -> None:
    """Weights of the same names and shapes from which others learn nothing would leave one site's update bare."""
    honest = some(4)
    moved = np.array(honest.given[name])
    moved.flat[-1] += 1
    odd = type(honest)({**honest.given, name: moved}, honest.updates)
    mixed = write_roster([*(o for s, o in honest.offers.items() if s != "site-03"), odd.offers["site-03"]])
    for party in (*(honest.parties[f"site-0{place}"] for place in range(3)), odd.parties["site-03"]):
        with pytest.raises(GateRefused) as caught:
            party.share(mixed)
        assert caught.value.code == "secure-keys"


def test_keys_that_the_coordinator_made_are_refused(some: Some) -> None:
    """It can sign with an identity of its own: a site that knows the others' identities sees it."""
    table = some(3)
    known = {site: offer.identity for site, offer in table.offers.items()}

    def trusted(identities: Any) -> None:
        if dict(identities) != known:
            raise GateRefused("strangers", code="secure-keys")

    party = Party("site-00", new_identity(), table.context, Rules(2 / 3, 2, trusted=trusted))
    table.parties["site-00"] = party
    with pytest.raises(GateRefused) as caught:
        party.share(table.keys().roster)
    assert caught.value.code == "secure-keys"


def test_a_forged_signature_is_refused(some: Some) -> None:
    table = some(3)
    offer = table.offers["site-02"]
    stolen = Offer(**{**vars(offer), "masking": table.offers["site-01"].sealing})
    with pytest.raises(GateRefused) as caught:
        table.parties["site-00"].share(write_roster([table.offers["site-00"], table.offers["site-01"], stolen]))
    assert caught.value.code in ("secure-keys", "malformed")


def test_a_lie_about_who_dropped_out_is_refused(some: Some) -> None:
    """Half of the sites are told that one dropped out, half that it did not: to get both kinds of share of it."""
    table = some(6).keys().shares().mask()
    everybody, fewer = sorted(table.masked), sorted(table.masked)[:5]
    said = {}
    for site in everybody:
        survivors = everybody if site in everybody[3:] else fewer
        said[site] = messages.read_table("confirm", table.parties[site].confirm(write_names(survivors)))[site]
    # All six signatures, or just those of one half, which are below the threshold of five.
    for chosen in (everybody, everybody[:3], everybody[3:]):
        for site in everybody:
            with pytest.raises(GateRefused) as caught:
                table.parties[site].unmask(write_table("confirm", {name: said[name] for name in chosen}))
            assert caught.value.code == "secure-signatures"


def test_a_site_that_signs_both_lists_does_not_help(some: Some) -> None:
    """One of five works with the coordinator: with it each half has three signatures, which must not be enough."""
    with pytest.raises(ValueError, match="2/3"):
        some(5, share=0.5)
    table = some(5).keys().shares().mask()
    everybody = sorted(table.masked)
    fewer, halves = everybody[:4], {"dropped": everybody[1:3], "stayed": everybody[3:]}
    for half, survivors in (("dropped", fewer), ("stayed", everybody)):
        message = messages.survivors_message(table.session, survivors)
        said = {"site-00": table.parties["site-00"]._identity.sign(message)}
        for site in halves[half]:
            said |= messages.read_table("confirm", table.parties[site].confirm(write_names(survivors)))
        for site in halves[half]:
            with pytest.raises(GateRefused) as caught:
                table.parties[site].unmask(write_table("confirm", said))
            assert caught.value.code == "secure-signatures"


@pytest.mark.parametrize("sites", range(3, 51))
def test_fewer_than_a_third_may_work_with_the_coordinator(sites: int) -> None:
    for colluding in range((sites + 2) // 3):
        assert 2 * threshold_of(sites, 2 / 3) > sites + colluding


def test_both_kinds_of_share_of_one_site_are_refused(some: Some) -> None:
    table = some(6).keys().shares().mask().confirm().unmask()
    fewer = sorted(table.masked)[:5]
    for site in fewer:
        with pytest.raises(GateRefused) as caught:
            table.parties[site].confirm(write_names(fewer))
        assert caught.value.code == "secure-again"
        seeds, keys = messages.read_revealed(table.revealed[site])
        assert not seeds.keys() & keys.keys()


def test_the_same_question_gets_the_same_answer_and_another_none(some: Some) -> None:
    table = some(4).keys().shares().mask().confirm().unmask()
    party = table.parties["site-01"]
    assert party.mask(tally.dealt(table.given_shares, "site-01"), table.encoder("site-01")) == table.masked["site-01"]
    assert party.unmask(write_table("confirm", table.signatures)) == table.revealed["site-01"]
    fewer = {site: shares for site, shares in table.given_shares.items() if site != "site-03"}
    for ask in (
        lambda: party.share(write_roster(list(table.offers.values())[:3])),
        lambda: party.mask(tally.dealt(fewer, "site-01"), table.encoder("site-01")),
        lambda: party.unmask(write_table("confirm", {"site-01": table.signatures["site-01"]})),
    ):
        with pytest.raises(GateRefused) as caught:
            ask()
        assert caught.value.code == "secure-again"


def test_exchanges_come_in_their_order(some: Some) -> None:
    table = some(4).keys()
    party = table.parties["site-00"]
    for ask in (
        lambda: party.mask(write_table("shares", {}), table.encoder("site-00")),
        lambda: party.confirm(write_names(["site-00"])),
        lambda: party.unmask(write_table("confirm", {})),
    ):
        with pytest.raises(GateRefused) as caught:
            ask()
        assert caught.value.code == "secure-session"


def test_a_site_is_not_told_that_it_dropped_out_and_asked_all_the_same(some: Some) -> None:
    table = some(6).keys().shares().mask()
    with pytest.raises(GateRefused) as caught:
        table.parties["site-05"].confirm(write_names(sorted(table.masked)[:5]))
    assert caught.value.code == "secure-keys"


def test_what_is_about_to_be_revealed_is_noted_before(some: Some) -> None:
    table = some(3)
    seen: list[tuple[str, ...]] = []

    def full(survivors: tuple[str, ...]) -> None:
        seen.append(survivors)
        raise OSError("the disk is full")

    table.parties["site-00"]._rules = Rules(2 / 3, 2, revealing=full)
    table.keys().shares().mask().confirm()
    with pytest.raises(OSError, match="full"):
        table.unmask()
    assert seen == [("site-00", "site-01", "site-02")]


# What a site may try


def test_a_false_share_is_outvoted(some: Some) -> None:
    table = some(10).keys().shares().mask(["site-09"]).confirm().unmask()
    seeds, keys = messages.read_revealed(table.revealed["site-00"])
    table.revealed["site-00"] = messages.write_revealed(
        {site: bytes(33) for site in seeds}, {site: b"\x00" + b"\x01" * 32 for site in keys}
    )
    check(table, table.sum())


@pytest.mark.parametrize("liars", [["site-00"], ["site-07"], ["site-14"], ["site-00", "site-01"]])
def test_false_shares_of_whoever_comes_early(some: Some, liars: list[str]) -> None:
    """Of 15 sites 11 are needed: of their first 200 choices in order, each has the first name in it."""
    table = some(15).keys().shares().mask().confirm().unmask()
    for site in liars:
        seeds, keys = messages.read_revealed(table.revealed[site])
        table.revealed[site] = messages.write_revealed({name: bytes(33) for name in seeds}, keys)
    check(table, table.sum())


def test_false_shares_of_too_many_give_nothing(some: Some) -> None:
    table = some(4).keys().shares().mask().confirm().unmask()
    for site in ("site-00", "site-01"):
        seeds, keys = messages.read_revealed(table.revealed[site])
        table.revealed[site] = messages.write_revealed({name: bytes(33) for name in seeds}, keys)
    with pytest.raises(ValueError, match="fit together"):
        table.sum()


def test_somebody_elses_name(some: Some) -> None:
    table = some(3)
    with pytest.raises(ValueError, match="signed"):
        tally.read_offer(table.parties["site-01"].offer, "site-02", table.context)


def test_shares_for_the_wrong_sites(some: Some) -> None:
    table = some(3).keys()
    said = table.parties["site-01"].share(table.roster)
    with pytest.raises(ValueError, match="gave keys"):
        tally.read_shares(said, "site-01", ["site-00", "site-01", "site-02", "site-03"])


def test_a_signature_under_something_else(some: Some) -> None:
    table = some(3).keys().shares().mask()
    said = table.parties["site-01"].confirm(write_names(table.masked))
    with pytest.raises(ValueError, match="sign"):
        tally.read_signature(said, table.offers["site-01"], table.session, ["site-00", "site-01"])
    with pytest.raises(ValueError, match="sign"):
        tally.read_signature(said, table.offers["site-02"], table.session, sorted(table.masked))
