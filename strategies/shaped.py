"""A weighted mean of what sites sent, and then something of our own: strategies that no site's update is needed for.

The mean is Flower's FedAvg, folded in site by site (:mod:`wardround.strategies.streaming`) or summed in secret.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from wardround.strategies.contract import Weights, weights_from_record, weights_to_record


class Shaped(FedAvg):
    """Makes something of the mean, by :meth:`shape`."""

    current_arrays: ArrayRecord | Mapping[str, Any] | None = None
    """What the round starts from, as :meth:`configure_train` was told."""

    def shape(self, mean: Weights, weights: Weights, sites: int) -> Weights:
        """The next global weights.

        Parameters
        ----------
        mean
            Weighted, of all that the sites sent; it may be changed.
        weights
            What the round started from, with the same names and shapes.
        sites
            How many sites the mean is of.

        Returns
        -------
        Weights
            Names and shapes of `weights`, of any dtype.
        """
        raise NotImplementedError

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As FedAvg does it; the arrays are what the round starts from."""
        self.current_arrays = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The mean of all replies at once, and what is made of it."""
        replies = list(replies)
        arrays, metrics = super().aggregate_train(server_round, replies)
        if arrays is None or self.current_arrays is None:
            return None, metrics
        start = self.current_arrays
        weights = weights_from_record(start) if isinstance(start, ArrayRecord) else dict(start)
        answered = sum(1 for reply in replies if not reply.has_error())
        return weights_to_record(self.shape(weights_from_record(arrays), weights, answered)), metrics
