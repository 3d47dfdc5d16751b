"""What arrays travel in a run, by name, shape and dtype: what the gate holds weights against that come in."""

from collections.abc import Mapping
from functools import lru_cache

from wardround.strategies.local_keys import staying
from wardround.strategies.plan import RoundPlan


def catalogue_reference(plan: RoundPlan) -> Mapping[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype by name of what travels under a plan, by the catalogue of networks that is installed.

    Raises
    ------
    UsageError
        If the catalogue does not know the plan's model.
    """
    steered = plan.control_variates, plan.normalised_steps > 0
    return _shapes(plan.model, plan.labels, plan.share_knobs, *steered, plan.local_keys)


@lru_cache(maxsize=4)
def _shapes(  # noqa: PLR0917
    model: str, labels: int, operators: bool, control: bool, steps: bool, local_keys: tuple[str, ...]
) -> Mapping[str, tuple[tuple[int, ...], str]]:
    """Of all arrays that travel in a run."""
    from wardround.models.travelling import travelling

    arrays = travelling(
        model,
        labels,
        0,
        operators=operators,
        control=control,
        steps=steps,
        staying=lambda names: staying(names, local_keys),
    )
    return {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}
