"""A number that somebody may choose between two bounds, and what is said where it lies elsewhere."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from wardround.errors import UsageError


@dataclass(frozen=True)
class Option:
    """A number between `low` and `high`, both included; a whole one where the default is."""

    default: float | int
    low: float
    high: float

    def check(self, owner: str, name: str, value: object) -> float | int:
        """The value, if it can be used.

        Parameters
        ----------
        owner, name
            Of the option, for the message.
        value
            As it was given.

        Raises
        ------
        UsageError
            If it is no such number.
        """
        whole = isinstance(self.default, int)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UsageError(f"{owner}: {name} must be a number", f"it is {value!r}", "give a number")
        if not (self.low <= value <= self.high and math.isfinite(value)) or (whole and value != int(value)):
            kind = "a whole number" if whole else "a number"
            raise UsageError(
                f"{owner}: {name} cannot be {value!r}",
                f"it must be {kind} between {self.low:g} and {self.high:g}",
                f"the default is {self.default:g}",
            )
        return int(value) if whole else float(value)


def chosen(owner: str, options: Mapping[str, Option], given: Mapping[str, object]) -> dict[str, float | int]:
    """Every option of `owner`, as given or by default.

    Raises
    ------
    UsageError
        If an option is unknown or its value cannot work.
    """
    unknown = sorted(set(given) - set(options))
    if unknown:
        raise UsageError(
            f"{owner} has no option {unknown[0]!r}", f"it knows {', '.join(options) or 'none'}", "remove it"
        )
    return {key: option.check(owner, key, given.get(key, option.default)) for key, option in options.items()}
