"""Seeds from seven points, by geodesic and by plain distance."""

from wardround.client.annotation.expansion import ExpansionSettings, expand_points
from wardround.client.annotation.prompts import Labels3D, PointPrompt
from wardround.client.cases.volume import Volume

SETTINGS = {
    "geodesic": ExpansionSettings(),
    # With no weight on intensity a step costs its length.
    "euclidean": ExpansionSettings(convention="additive", weight=0.0),
}


def seeds_of(name: str, image: Volume, points: tuple[PointPrompt, ...]) -> Labels3D:
    """As :func:`~wardround.client.annotation.expansion.expand_points`, under the settings of that name."""
    return expand_points(image.array, image.spacing, points, SETTINGS[name])
