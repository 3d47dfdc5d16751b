"""The disk of the coordinator, or of a site, is full for a while."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from faults import Ground, fill
from federation import Reference

pytestmark = pytest.mark.long

COORDINATOR_MIB, SITE_MIB = 96, 64


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[None]:
    """A disk of that size at `folder`. It takes root."""
    folder.mkdir(mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=0700", "tmpfs", str(folder)]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("`mount` is not installed")
    if answer.returncode:
        pytest.skip(f"a small disk cannot be made: {answer.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, reference: Reference, _nothing_stands: None) -> Iterator[Ground]:
    """A federation whose coordinator and first site have small disks."""
    folder = tmp_path_factory.mktemp("small")
    with ExitStack() as stack:
        stack.enter_context(small_disk(folder / "coordinator", COORDINATOR_MIB))
        stack.enter_context(small_disk(folder / reference.sites[0], SITE_MIB))
        yield stack.enter_context(Ground.make(folder, reference))


@pytest.mark.parametrize("whose", ["coordinator", "site"])
def test_a_full_disk(small: Ground, whose: str) -> None:
    course = small.start(f"full-{whose}", retries=50)
    course.reach(small.federation.reference.plan["rounds"], "mid-training")
    filler = fill(small.home.path if whose == "coordinator" else small.victim.path)
    # Long enough that whoever wants to write tries more than once.
    time.sleep(45)
    filler.unlink()
    course.back = time.monotonic()
    course.finish()
    course.check()
