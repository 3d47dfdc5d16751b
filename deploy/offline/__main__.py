"""``python -m wardround.deploy.offline``: make a bundle where there is network, check it where there is none."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from wardround.deploy.launch import explain
from wardround.deploy.offline.bundle import build, verify
from wardround.errors import WardroundError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is that of the error, if there is one."""
    parser = argparse.ArgumentParser(prog="python -m wardround.deploy.offline", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("build", help="fetch every wheel and write the bundle")
    make.add_argument("out", type=Path, help="a folder that is empty or not there")
    make.add_argument(
        "--project", type=Path, default=Path(), help="a checkout of Wardround, or a wheel (default: here)"
    )
    make.add_argument("--constraints", type=Path, default=Path("constraints.txt"), help="default: %(default)s")
    make.add_argument("--pip", action="append", default=[], metavar="OPTION", help="for pip download; may be repeated")
    check = commands.add_parser("verify", help="check every file of a bundle")
    check.add_argument("bundle", type=Path)
    given = parser.parse_args(arguments)
    try:
        if given.command == "build":
            build(given.out, given.project, given.constraints, given.pip)
            bundle = given.out
        else:
            bundle = given.bundle
        sys.stdout.write(f"{verify(bundle)}  {bundle / 'SHA256SUMS'}\n")
    except WardroundError as error:
        explain(error.problem, error.cause, error.fix)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
