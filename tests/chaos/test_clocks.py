"""The clock of a site goes wrong in the middle of a run, and is set right again.

The site's processes are told another time by a library before the C library; the clock of the machine stays as it is.
"""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from deployment import eventually
from faults import Ground
from federation import PATIENCE_S, Reference

from wardround.errors import DoctorFailed
from wardround.files import write_text

pytestmark = pytest.mark.long

SOURCE = Path(__file__).parents[1] / "support" / "clock.c"


@dataclass(frozen=True)
class Clock:
    """What the first site takes for the time.

    Parameters
    ----------
    file
        Says how far it is off.
    library
        Reads it.
    """

    file: Path
    library: Path

    @property
    def prefix(self) -> list[str]:
        """What stands before the commands that go by this clock."""
        return ["env", f"LD_PRELOAD={self.library}", f"CLOCK_FILE={self.file}"]

    def put(self, ahead: int) -> None:
        """Put it so many seconds ahead, or behind."""
        write_text(self.file, f"{ahead:+d}\n")


@dataclass(frozen=True)
class Skewed:
    """A federation, and the clock of its first site."""

    ground: Ground
    clock: Clock


@pytest.fixture(scope="module")
def skewed(tmp_path_factory: pytest.TempPathFactory, reference: Reference, _nothing_stands: None) -> Iterator[Skewed]:
    if shutil.which("cc") is None:
        pytest.skip("`cc` is not installed")
    folder = tmp_path_factory.mktemp("skewed")
    library = folder / "clock.so"
    command = ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    clock = Clock(folder / "clock", library)
    clock.put(0)
    with Ground.make(folder, reference, {reference.sites[0]: clock.prefix}) as ground:
        yield Skewed(ground, clock)


@pytest.mark.parametrize(("ahead", "words"), [(600, "s ahead of"), (-600, "s behind")])
def test_a_clock_that_is_far_off_is_named(skewed: Skewed, ahead: int, words: str) -> None:
    """Nothing that the site signs is believed. Its log and its doctor say why, and the run waits for it."""
    ground, clock = skewed.ground, skewed.clock
    course = ground.start(f"clock-{'ahead' if ahead > 0 else 'behind'}", retries=50)
    course.reach(ground.federation.reference.plan["rounds"], "mid-training")
    log = ground.victim.logs / "supernode.log"
    before = len(log.read_text())
    clock.put(ahead)
    try:
        cause = re.compile(rf"clock is (59|60)\d {words} the coordinator's.*NTP")
        eventually(lambda: cause.search(log.read_text()[before:]), f"{words} in the log", PATIENCE_S)
        command = ["-m", "wardround.deploy.cli", "site", "doctor", "--home", str(ground.victim.path)]
        doctor = subprocess.run(
            [*clock.prefix, sys.executable, *command], capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
        assert doctor.returncode == DoctorFailed.exit_code, doctor.stdout + doctor.stderr
        assert re.search(rf"clock is (59|60)\d {words}", doctor.stdout), doctor.stdout
        assert course.look() == "running"
    finally:
        clock.put(0)
    course.back = time.monotonic()
    course.finish()
    course.check()


def test_a_clock_that_is_two_minutes_behind_does_no_harm(skewed: Skewed) -> None:
    skewed.clock.put(-120)
    try:
        course = skewed.ground.start("clock-behind-a-little")
        course.finish()
        course.check()
    finally:
        skewed.clock.put(0)
