"""A site's state for Prometheus, read from the disk at the moment of asking; nothing is counted in memory.

Only what the ledger counts is told: messages, bytes, codes. No case, no patient, no path.
"""

import math
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from wardround import __version__
from wardround.client.overview import SiteOverview, seconds_of


def exposition(view: SiteOverview) -> bytes:
    """Everything in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Site(view))
    return generate_latest(registry)


class _Site(Collector):
    def __init__(self, view: SiteOverview) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        """All families."""
        view, account = self._view, self._view.account
        build = GaugeMetricFamily("wardround_build_info", "Version of Wardround.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        state = GaugeMetricFamily("wardround_site_state", "1 for the state that the site is in.", labels=["state"])
        for name in ("active", "paused", "left", "unknown"):
            state.add_metric([name], float(view.participation == name))
        yield state
        if view.agent is not None:
            yield _gauge("wardround_agent_up", "Whether an agent is at work.", float(view.agent))
        yield _gauge("wardround_unreadable", "Files of the site that cannot be read.", len(view.notes))
        yield _gauge("wardround_bundles_waiting", "App bundles that wait for a decision.", len(view.waiting))
        yield _gauge("wardround_ledger_valid", "Whether the ledger is whole.", float(account.verification.ok))
        yield _gauge("wardround_ledger_lines", "Good lines of the ledger.", account.verification.count)
        if math.isfinite(last := seconds_of(account.sent[0] if account.sent else None)):
            yield _gauge("wardround_last_sent_seconds", "When something last left, in seconds since 1970.", last)
        if account.given is not None and account.given.round is not None:
            yield _gauge("wardround_round", "Round of the latest weights that came in.", account.given.round)
        labels = ["direction", "kind", "verdict", "code"]
        messages = CounterMetricFamily("wardround_messages", "Lines of the ledger.", labels=labels)
        size = CounterMetricFamily("wardround_message_bytes", "Bytes that these lines count.", labels=labels)
        for key, (lines, total) in sorted(account.totals.items()):
            messages.add_metric(list(key), lines)
            size.add_metric(list(key), total)
        yield messages
        yield size


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)
