"""The command line: parses, calls, prints, exits. One file a command."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import click

from advconn.cli.attack import attack
from advconn.cli.benchmark import benchmark
from advconn.cli.calibrate import calibrate
from advconn.cli.card import card
from advconn.cli.compare import compare
from advconn.cli.connect import connect
from advconn.cli.docs import docs
from advconn.cli.fit import fit
from advconn.cli.output import print_error
from advconn.cli.score import FAILED, score
from advconn.cli.serve import serve
from advconn.cli.study import study
from advconn.errors import AdvconnError, first_line

INTERRUPTED, TERMINATED = 130, 143


class _Terminated(KeyboardInterrupt):
    """SIGTERM: a run ends as it does at Ctrl-C, and shows what it has."""


def _terminate(number: int, frame: Any) -> None:
    raise _Terminated


class _SystemError(Exception):
    """Holds an OSError."""


class _Group(click.Group):
    """Every way to fail is one line on stderr and exit status 2; 1 is kept for "flagged"."""

    debug = False

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        *,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, and exit with 0, 1 (flagged), 2 (failed), 130 (interrupted) or 143 (terminated)."""
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **extra)
        self.debug = bool(os.environ.get("ADVCONN_DEBUG"))
        _writable()
        with suppress(ValueError, AttributeError):  # not in the main thread, or no such signal
            signal.signal(signal.SIGTERM, _terminate)
        try:
            status = _flushed(super().main(args, prog_name, standalone_mode=False, **extra))
        except click.exceptions.Exit as error:
            status = _flushed(error.exit_code)
        except BaseException as error:  # the last place where anything can be said in one line
            status = self._failed(error)
        sys.exit(status if isinstance(status, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Carry errors of the system past click, which would end with 1 at a closed pipe."""
        try:
            return super().invoke(ctx)
        except OSError as error:
            raise _SystemError(error) from error

    def _failed(self, error: BaseException) -> int:
        error = error.args[0] if isinstance(error, _SystemError) else error
        if self.debug and not isinstance(error, (KeyboardInterrupt, click.Abort)):
            traceback.print_exception(error)
            return FAILED
        with suppress(OSError, ValueError):
            if isinstance(error.__cause__, _Terminated):
                print_error("terminated")
                return TERMINATED
            if isinstance(error, (KeyboardInterrupt, click.Abort)):
                print_error("interrupted")
                return INTERRUPTED
            if isinstance(error, click.ClickException):
                for theirs, ours in KINDS_OF_NUMBER.items():
                    vars(error)["message"] = error.message.replace(theirs, ours)
                error.show()
            elif isinstance(error, SystemExit):
                print_error(f"something ended the run from inside (status {error.code})")
            elif isinstance(error, AdvconnError):
                print_error(str(error))
            elif isinstance(error, BrokenPipeError):
                _silence()
                print_error("the output was closed before everything was written")
            elif isinstance(error, OSError):
                _silence()
                print_error(f"{error.filename or 'the output'}: {error.strerror or first_line(error)}")
            else:
                print_error(
                    f"an error inside advconn, please report it: {type(error).__name__}: {first_line(error)} (--debug "
                    "shows the whole trace)"
                )
        return FAILED


KINDS_OF_NUMBER = {  # click's names of types, longest first
    "is not a valid integer range": "is not a whole number",
    "is not a valid float range": "is not a number",
    "is not a valid integer": "is not a whole number",
    "is not a valid float": "is not a number",
}


def _writable() -> None:
    """Output that is closed is told before the work; names that it cannot print are escaped."""
    if sys.stdout is None:
        with suppress(OSError, ValueError):
            print_error("the standard output is closed: there is nowhere to put the results")
        sys.exit(FAILED)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _flushed(status: Any) -> Any:
    """The status, or a failure where what was printed cannot be written."""
    try:
        sys.stdout.flush()
        return status
    except OSError as error:
        _silence()
        with suppress(OSError, ValueError):
            print_error(f"the output cannot be written: {error.strerror}")
        return FAILED


def _silence() -> None:
    """Nothing more goes to an output that is gone, not even at exit."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    root = ctx.find_root().command
    if value and isinstance(root, _Group):
        root.debug = True


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


for command in (score, fit, calibrate, card, attack, benchmark, compare, connect, study, serve, docs):
    option = click.Option(
        ["--debug"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_debug,
        help="Show the whole trace of an error.",
    )
    command.params.append(option)
    main.add_command(command)
