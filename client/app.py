"""The Flower ClientApp: carries a round's plan and weights to the site and its answer back.

It imports neither torch nor anything that touches an image. What a coordinator may ask for is a train, an evaluate
and a query message; what it gets back is arrays of the agreed model, agreed scalars, or the name of an error: a class,
or a code of the site's gate. Error texts stay at the site.
"""

import logging

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from wardround.client.door import Kind, open_site
from wardround.errors import GateRefused, PlanError, WardroundError, for_log
from wardround.strategies.parcel import is_wrapped, unwrap, wrap

log = logging.getLogger(__name__)

SITE_ERROR = 100
"""Code of an error reply that the site itself gave; its reason is the name of an error class or a code of the gate."""

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Learn for one round and answer with weights and agreed scalars."""
    return _reply(message, context, "train")


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the weights on the site's held-back cases and answer with means."""
    return _reply(message, context, "evaluate")


@app.train("shares")
def shares(message: Message, context: Context) -> Message:
    """Secure aggregation: look at everybody's keys, and give everybody a share of this site's secrets."""
    return _reply(message, context, "shares")


@app.train("masked")
def masked(message: Message, context: Context) -> Message:
    """Secure aggregation: give the update under masks."""
    return _reply(message, context, "masked")


@app.train("confirm")
def confirm(message: Message, context: Context) -> Message:
    """Secure aggregation: sign who is in the sum."""
    return _reply(message, context, "confirm")


@app.train("unmask")
def unmask(message: Message, context: Context) -> Message:
    """Secure aggregation: give what takes the masks of the sum away."""
    return _reply(message, context, "unmask")


@app.query("status")
def status(message: Message, context: Context) -> Message:
    """Answer with counts only."""
    return _reply(message, context, "status")


def _reply(message: Message, context: Context, kind: Kind) -> Message:
    try:
        return Message(_answer(kind, message, context), reply_to=message)
    except GateRefused as error:
        log.error("%s", error)
        return Message(Error(SITE_ERROR, error.code), reply_to=message)
    except WardroundError as error:
        log.error("%s", error)
        return Message(Error(SITE_ERROR, type(error).__name__), reply_to=message)
    except Exception as error:  # noqa: BLE001 - it becomes the answer
        log.error("the site failed: %s", for_log(error))
        return Message(Error(SITE_ERROR, type(error).__name__), reply_to=message)


def _answer(kind: Kind, message: Message, context: Context) -> RecordDict:
    """The site's answer; its weights travel as those of the question did."""
    in_pieces = is_wrapped(message.content)
    try:
        # In its place: a large model is not kept twice.
        message.content = unwrap(message.content)
    except ValueError as error:
        raise PlanError(
            "the weights cannot be read", str(error), "both ends must run the same version of Wardround"
        ) from error
    answer = open_site(context).answer(kind, message.content)
    return wrap(answer) if in_pieces else answer
