"""The command line: parses, calls, prints, exits. One file a command."""

from __future__ import annotations

import sys
from typing import Any

import click

from advconn.cli.attack import attack
from advconn.cli.benchmark import benchmark
from advconn.cli.common import complain
from advconn.cli.connect import connect
from advconn.cli.fit import fit
from advconn.cli.score import FAILED, score
from advconn.cli.study import study
from advconn.errors import AdvconnError


class _Group(click.Group):
    """Turns what advconn refuses into one line on stderr and exit status 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AdvconnError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            _fail("interrupted")


def _fail(message: str) -> None:
    complain(message)
    sys.exit(FAILED)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="advconn")
def main() -> None:
    """Tell whether an image was adversarially perturbed, from how it is connected to what its class looks like.

    \b
    Example:
      advconn score photo.png
      advconn fit --model my_model.py:build --data images/ --out detector/
      advconn score --detector detector/ --model my_model.py:build photo.png
    """


for command in (score, fit, attack, benchmark, connect, study):
    main.add_command(command)
