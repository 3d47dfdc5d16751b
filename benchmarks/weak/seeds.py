"""Seeds from seven points, by geodesic and by plain distance."""

from wardround.client.annotation.expansion import CONTRASTED, ExpansionSettings, expand_points
from wardround.client.annotation.prompts import Labels3D, PointPrompt
from wardround.client.cases.volume import Volume

# Chosen by benchmarks/seeds.py on training cases for a precision of 0.9, as those of geodesic distance. With no weight
# on intensity a step costs its length.
SETTINGS = {
    "geodesic": ExpansionSettings(),
    "euclidean": ExpansionSettings(weight=0.0, threshold=0.25, rival=0.48),
    "geodesic, contrasted": CONTRASTED,
    "euclidean, contrasted": ExpansionSettings(weight=0.0, threshold=0.275, rival=0.56),
}


def seeds_of(name: str, image: Volume, points: tuple[PointPrompt, ...]) -> Labels3D:
    """As :func:`~wardround.client.annotation.expansion.expand_points`, under the settings of that name."""
    return expand_points(image.array, image.spacing, points, SETTINGS[name])
