"""The Flower ClientApp: carries a round's plan and weights to the site and its answer back.

It imports neither torch nor anything that touches an image. What a coordinator may ask for is a train, an evaluate
and a query message; what it gets back is arrays of the agreed model, agreed scalars, or the name of an error class.
Error texts stay at the site.
"""

import logging
from collections.abc import Callable

from flwr.app import Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from wardround.client.door import open_site
from wardround.errors import WardroundError
from wardround.strategies.contract import ARRAYS, METRICS, PLAN, weights_from_record, weights_to_record
from wardround.strategies.plan import RoundPlan

log = logging.getLogger(__name__)

SITE_ERROR = 100
"""Code of an error reply that the site itself gave; its reason is the name of an error class."""

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Learn for one round and answer with weights and agreed scalars."""

    def answer() -> RecordDict:
        plan = RoundPlan.from_record(message.content.config_records[PLAN])
        weights = weights_from_record(message.content.array_records[ARRAYS])
        update = open_site(context).train(plan, weights)
        return RecordDict({ARRAYS: weights_to_record(update.weights), METRICS: MetricRecord(dict(update.metrics))})

    return _reply(message, answer)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the weights on the site's held-back cases and answer with means."""

    def answer() -> RecordDict:
        plan = RoundPlan.from_record(message.content.config_records[PLAN])
        weights = weights_from_record(message.content.array_records[ARRAYS])
        return RecordDict({METRICS: MetricRecord(dict(open_site(context).evaluate(plan, weights)))})

    return _reply(message, answer)


@app.query("status")
def status(message: Message, context: Context) -> Message:
    """Answer with counts only."""
    return _reply(message, lambda: RecordDict({METRICS: MetricRecord(dict(open_site(context).status()))}))


def _reply(message: Message, answer: Callable[[], RecordDict]) -> Message:
    try:
        return Message(answer(), reply_to=message)
    except WardroundError as error:
        log.error("%s", error)
        return Message(Error(SITE_ERROR, type(error).__name__), reply_to=message)
    except Exception as error:
        log.exception("the site failed")
        return Message(Error(SITE_ERROR, type(error).__name__), reply_to=message)
