"""A coordinator's state for Prometheus, read from the disk at the moment of asking; nothing is counted in memory."""

import math
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from wardround import __version__
from wardround.server.overview import Overview, RunView, scalar
from wardround.strategies.contract import LOSS

_STATES = ("queued", "running", "finished", "failed", "stopped")


def exposition(view: Overview) -> bytes:
    """Everything in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Coordinator(view))
    return generate_latest(registry)


class _Coordinator(Collector):
    def __init__(self, view: Overview) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        """All families."""
        view = self._view
        build = GaugeMetricFamily("wardround_build_info", "Version of Wardround.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        if view.serving is not None:
            yield _gauge("wardround_coordinator_serving", "Whether a coordinator is at work.", float(view.serving))
        yield _gauge("wardround_unreadable", "Files of the coordinator that cannot be read.", len(view.notes))
        online = GaugeMetricFamily("wardround_site_online", "Whether a registered site is online.", labels=["site"])
        seen = GaugeMetricFamily(
            "wardround_site_last_seen_seconds", "Last sign of life of a site, in seconds since 1970.", labels=["site"]
        )
        for site in view.sites:
            if site.state == "registered" and site.online is not None:
                online.add_metric([site.name], float(site.online))
            if math.isfinite(site.seen):
                seen.add_metric([site.name], site.seen)
        yield online
        yield seen
        yield from _runs(view.runs)


def _runs(runs: tuple[RunView, ...]) -> Iterator[Metric]:
    state = GaugeMetricFamily("wardround_run_state", "1 for the state that the run is in.", labels=["run", "state"])
    planned = GaugeMetricFamily("wardround_run_rounds_planned", "Rounds asked for.", labels=["run"])
    closed = GaugeMetricFamily("wardround_run_rounds_closed", "Rounds closed; falls on a rollback.", labels=["run"])
    when = GaugeMetricFamily(
        "wardround_run_last_round_seconds", "When the last round was closed, in seconds since 1970.", labels=["run"]
    )
    took = GaugeMetricFamily("wardround_run_phase_seconds", "Duration of the last round.", labels=["run", "phase"])
    attempts = CounterMetricFamily("wardround_run_attempts", "How often the run was submitted.", labels=["run"])
    traffic = CounterMetricFamily(
        "wardround_site_bytes", "Weights and metrics of a run.", labels=["run", "site", "direction"]
    )
    combined = CounterMetricFamily(
        "wardround_site_rounds", "What became of a site's rounds.", labels=["run", "site", "outcome"]
    )
    quarantine = GaugeMetricFamily("wardround_site_quarantined", "Whether a site is left out.", labels=["run", "site"])
    dice = GaugeMetricFamily("wardround_site_dice", "Latest mean Dice on held-back cases.", labels=["run", "site"])
    loss = GaugeMetricFamily("wardround_site_loss", "Loss in the last round.", labels=["run", "site"])
    answers = GaugeMetricFamily(
        "wardround_open_round_sites", "Sites of the round that is open, by answer.", labels=["run", "answer"]
    )
    for run in runs:
        for name in _STATES:
            state.add_metric([run.name, name], float(run.state == name))
        if run.planned:
            planned.add_metric([run.name], run.planned)
        closed.add_metric([run.name], len(run.records))
        attempts.add_metric([run.name], run.attempts)
        if run.last is not None:
            when.add_metric([run.name], run.closed.get(run.last.round, math.nan))
            for phase, seconds in run.last.seconds.items():
                took.add_metric([run.name, phase], seconds)
            for site, report in run.last.sites.items():
                loss.add_metric([run.name, site], scalar(report.metrics, LOSS))
        if run.open is not None:
            answers.add_metric([run.name, "accepted"], len(run.open.answered))
            answers.add_metric([run.name, "waited-for"], len(run.open.waiting))
        for total in run.site_totals():
            names = [run.name, total.name]
            traffic.add_metric([*names, "down"], total.bytes_down)
            traffic.add_metric([*names, "up"], total.bytes_up)
            for outcome, count in (("combined", total.rounds), ("refused", total.refused), ("missing", total.missing)):
                combined.add_metric([*names, outcome], count)
            quarantine.add_metric(names, float(total.quarantined))
            if math.isfinite(total.dice):
                dice.add_metric(names, total.dice)
    yield from (state, planned, closed, when, took, attempts, traffic, combined, quarantine, dice, loss, answers)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)
