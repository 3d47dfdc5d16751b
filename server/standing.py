"""Quarantine: who is not asked for a while, because one reply after another had to be refused.

Standings are worked out from one round to the next and written into the journal with the round, so that a run that is
started again knows them.
"""

from collections.abc import Mapping, Set

from wardround.server.records import Standing
from wardround.server.settings import LoopSettings


def quarantined(standing: Mapping[str, Standing], round: int, settings: LoopSettings) -> frozenset[str]:
    """The sites that sit this round out."""
    if not settings.quarantine_after:
        return frozenset()
    return frozenset(site for site, now in standing.items() if round <= now.until)


def judge(
    standing: Mapping[str, Standing],
    round: int,
    good: Set[str],
    blamed: Set[str],
    settings: LoopSettings,
) -> dict[str, Standing]:
    """Standings after a round.

    Parameters
    ----------
    standing
        Before it.
    round
        Its number.
    good
        Sites with a good reply: they have nothing to answer for any more.
    blamed
        Sites whose reply was refused, and who could have helped it. Who did not reply keeps the standing.
    settings
        See :class:`wardround.server.settings.LoopSettings`.
    """
    if not settings.quarantine_after:
        return {}
    after = {}
    for site in sorted(standing.keys() | blamed):
        now = standing.get(site, Standing())
        if site in good:
            continue
        if site in blamed and round > now.until:
            strikes = now.strikes + 1
            on_probation = now.until > 0
            now = (
                Standing(0, round + settings.quarantine_rounds)
                if on_probation or strikes >= settings.quarantine_after
                else Standing(strikes, now.until)
            )
        after[site] = now
    return after
