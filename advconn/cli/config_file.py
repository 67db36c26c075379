"""Options of a command from a TOML file; the command line and environment variables come before it."""

from __future__ import annotations

import tomllib
from typing import Any

import click

from advconn.cli.options import PATH
from advconn.errors import DataError, expected_one_of


def _read_config(context: click.Context, _: click.Parameter, value: Any) -> None:
    """Take a file's entries as defaults of the command's options.

    Raises:
        DataError: no such file, no TOML, an entry that is no option, or a table.
    """
    if value is None or context.resilient_parsing:
        return
    try:
        entries = tomllib.loads(value.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"--config {value}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise DataError(f"--config {value}: not TOML: {error}") from error
    options = {opt.removeprefix("--"): p for p in context.command.params for opt in p.opts if opt.startswith("--")}
    known = {name: option for name, option in options.items() if option.name is not None and option.name != "config"}
    defaults: dict[str, Any] = {}
    for key, entry in entries.items():
        if key not in known:
            raise DataError(f"--config {value}: no option {key!r}: {expected_one_of(key, known)}")
        many, flag = (bool(getattr(known[key], name, False)) for name in ("multiple", "is_flag"))
        texts = isinstance(entry, list) and all(isinstance(part, str) for part in entry)
        if not (texts if many else isinstance(entry, bool) if flag else type(entry) in (str, int, float)):
            kind = "a list of texts" if many else "true or false" if flag else "a text or a number"
            raise DataError(f"--config {value}: {key}: expected {kind}, got {str(entry)[:60]!r}")
        defaults[str(known[key].name)] = entry if isinstance(entry, (bool, list)) else str(entry)
    context.default_map = defaults


config_option = click.option(
    "--config",
    type=PATH,
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    metavar="FILE",
    help="TOML file with options, such as port = 8080. Options and variables such as ADVCONN_SERVE_PORT override it.",
)
