"""Ids that a viewer may use for a case, and how long one of them opens an image."""

from pathlib import Path
from typing import Any

import pytest

from wardround.client.workbench.monai_label.desk import TICKET_S, Desk, params_of, read_secret
from wardround.client.workbench.monai_label.replies import Refused

NOTHING: Any = None


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def desk(secret: bytes = b"secret", clock: Clock | None = None, register: Any = None, studio: Any = None) -> Desk:
    return Desk(studio, NOTHING, NOTHING, NOTHING, secret, register, clock=clock or Clock())


def test_a_ticket_opens_an_image_until_it_expires() -> None:
    clock = Clock()
    here = desk(clock=clock)
    image = here.ticketed("case~0")
    assert here.ticket(image) == ("case~0", True)
    clock.now += TICKET_S - 1
    assert here.ticket(image) == ("case~0", True)
    clock.now += 1
    assert here.ticket(image) == ("case~0", False)


def test_a_ticket_of_another_site_is_none() -> None:
    assert desk(b"other").ticket(desk().ticketed("case0")) is None


def test_a_name_of_an_upload_is_no_ticket() -> None:
    """Both are made with one secret, for two purposes."""
    here = desk()
    assert here.ticket(f"case0~ffffffffff~{here.upload_id('case0')}") is None
    assert here.upload_id("one") != here.upload_id("other")
    assert here.upload_id("one") != desk(b"other").upload_id("one")


def test_a_series_with_other_voxels_is_refused() -> None:
    """OHIF would lay the mask on the wrong voxels."""

    class Resampled:
        def case_of_series(self, uid: str) -> str | None:
            return "d0" if uid == "1.2" else None

        def series_of(self, case_id: str) -> None:
            return None

    with pytest.raises(Refused) as caught:
        desk(register=Resampled()).case("1.2", "ann")
    assert caught.value.status == 409


def test_a_secret_is_made_once_and_for_the_site_only(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "secret"
    made = read_secret(path)
    assert len(made) == 32
    assert read_secret(path) == made
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("text", ["[", "[1]", "1", '"x"', "nul", "[" * 100_000])
def test_parameters_are_an_object(text: str) -> None:
    with pytest.raises(Refused):
        params_of(text)


@pytest.mark.parametrize("text", ["", None, "{}"])
def test_no_parameters_are_an_empty_object(text: str | None) -> None:
    assert params_of(text) == {}
