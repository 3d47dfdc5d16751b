"""How the figures look: two palettes, one marker per arm and the helpers that every figure shares.

The hues are the colour-blind safe set of Okabe and Ito, darkened or lightened to stand out from the paper; an arm
differs from the others in its marker too, never in hue alone.
"""

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 160
MARKERS = {"federated": "o", "dense": "s", "pooled": "D", "local": "^", "proxy": "v", "slices-only": "P"}
CONTOURS = ("#ffd84d", "#4cc3ff", "#ff8f5a", "#8df0b4", "#f3a6d8")


@dataclass(frozen=True)
class Theme:
    """The colours of one palette; `hues` by arm, `phases` in order, `flow` for up and down."""

    name: str
    paper: str
    ink: str
    muted: str
    line: str
    hues: dict[str, str]
    phases: tuple[str, ...]
    flow: tuple[str, str]

    def hue(self, arm: str) -> str:
        """The colour of an arm."""
        return self.hues.get(arm, self.muted)


LIGHT = Theme(
    "light",
    "#ffffff",
    "#1b2530",
    "#5d6b7a",
    "#dde3e9",
    {
        "federated": "#0068b0",
        "dense": "#c94f00",
        "pooled": "#00876a",
        "local": "#b87a00",
        "proxy": "#b0568c",
        "slices-only": "#6f6f6f",
    },
    ("#8fbfe0", "#e8a75c", "#5f9e8f", "#3c5a8c", "#a8556b", "#bfaed9", "#d3d9df"),
    ("#33475b", "#a9b9c8"),
)
DARK = Theme(
    "dark",
    "#161b22",
    "#e8edf3",
    "#9aa8b7",
    "#313a45",
    {
        "federated": "#5cb8f2",
        "dense": "#ff8d52",
        "pooled": "#38cfa3",
        "local": "#f0bb45",
        "proxy": "#ea9dcb",
        "slices-only": "#b4b4b4",
    },
    ("#9fd0f0", "#e8a75c", "#5fb3a0", "#5a80c0", "#cf7288", "#c6b4e3", "#4a5561"),
    ("#c3d0dc", "#66788a"),
)


@contextmanager
def styled(theme: Theme) -> Iterator[None]:
    """Draw in this block with the theme's colours, and take no text for mathematics."""
    settings = {
        "figure.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "savefig.facecolor": theme.paper,
        "text.color": theme.ink,
        "text.parse_math": False,
        "axes.labelcolor": theme.muted,
        "axes.edgecolor": theme.line,
        "axes.titlecolor": theme.ink,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 9,
        "axes.labelsize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "xtick.color": theme.line,
        "ytick.color": theme.line,
        "xtick.labelcolor": theme.muted,
        "ytick.labelcolor": theme.muted,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "grid.color": theme.line,
        "grid.linewidth": 0.7,
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "lines.solid_capstyle": "round",
    }
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*tight_layout|.*constrained_layout", category=UserWarning)
        yield


def new_figure(width: float, height: float, *, constrained: bool = True) -> Any:
    """An empty figure of that size in inches, bound to the Agg canvas."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained" if constrained else None)
    FigureCanvasAgg(figure)
    return figure


def png(figure: Any, dpi: int = DPI) -> bytes:
    """The figure as PNG; the same figure always gives the same bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, metadata={"Software": None})
    return stream.getvalue()


def short(text: str, length: int = 22) -> str:
    """A name that fits into a figure: one line, printable, cut in the middle where it is too long."""
    clean = "".join(character if character.isprintable() else "·" for character in text)
    if len(clean) <= length:
        return clean
    head = (length - 1) * 2 // 3
    return clean[:head] + "…" + clean[head + 1 - length :]


def counted(number: int) -> str:
    """A count at the start of a sentence: a word up to twelve, digits beyond."""
    words = ["Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve"]
    return words[number] if 0 <= number < len(words) else str(number)


def spread_out(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move label positions apart until neighbours are `gap` away, keeping their order and staying in low … high.

    Where they cannot all fit, they are evenly spaced.
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    if not order:
        return []
    gap = min(gap, (high - low) / max(len(order) - 1, 1))
    placed: list[float] = []
    for index in order:
        placed.append(max(positions[index], placed[-1] + gap if placed else low))
    ceiling = high
    for rank in range(len(order) - 1, -1, -1):
        placed[rank] = min(placed[rank], ceiling)
        ceiling = placed[rank] - gap
    moved = [0.0] * len(order)
    for rank, index in enumerate(order):
        moved[index] = placed[rank]
    return moved


def dice_limits(values: Sequence[float], least_span: float = 0.1) -> tuple[float, float]:
    """Axis limits that show differences between these Dice values without blowing up noise."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    margin = max(0.12 * (high - low), (least_span - (high - low)) / 2, 0.01)
    return max(0.0, low - margin), min(1.0, high + margin)


@dataclass(frozen=True)
class Sketch:
    """A figure before it is turned into a PNG, with its texts."""

    figure: Any
    title: str
    caption: str
    alt: str
    dpi: int = DPI
