"""What is imported or compiled at the first stroke of a process is so before anybody draws."""

import functools
import logging
import threading

import numpy as np

from wardround.client.annotation.prompts import UNLABELLED, Annotations, ScribblePrompt, SlicePrompt
from wardround.client.annotation.propagation import LIVE, propagate
from wardround.client.cases.volume import Volume
from wardround.client.device import give_way

log = logging.getLogger(__name__)


@functools.cache
def warm_up() -> threading.Thread:
    """Begin, once in a process. The thread that is returned ends when it is done."""
    # No daemon: a compiler that is ended with the interpreter may take it down.
    thread = threading.Thread(target=_draw, name="warm-up")
    thread.start()
    return thread


def _draw() -> None:
    """Two slices and a stroke on a case of noise."""
    give_way()
    side = 16
    image = np.random.default_rng(0).normal(size=(side, side, side)).astype(np.float32)
    cut = np.zeros((side, side), dtype=np.uint8)
    cut[5:11, 5:11] = 1
    stroke = np.full((side, side), UNLABELLED, dtype=np.uint8)
    stroke[7:9, 8] = 1
    drawn = Annotations().adding(SlicePrompt(2, 4, cut), SlicePrompt(2, 11, cut), ScribblePrompt(1, 8, stroke))
    try:
        propagate(Volume(image, np.eye(4)), drawn, 2, settings=LIVE)
    except Exception as error:  # noqa: BLE001
        log.warning("drawing could not be prepared (%s); the first stroke will say why", type(error).__name__)
