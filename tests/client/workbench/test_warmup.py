"""Nobody pays for the compiler at the first stroke."""

import subprocess
import sys

SCRIPT = """
import sys
from wardround.client.workbench.warmup import warm_up
assert "numba" not in sys.modules
warm_up().join()
assert warm_up() is warm_up()
from wardround.client.annotation.geodesic import _compiled
print(_compiled.cache_info().currsize, "numba" in sys.modules)
"""


def test_what_a_stroke_needs_is_there_before_it() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.split() == ["1", "True"], done.stderr
