"""advconn compare: several benchmarks side by side."""

from __future__ import annotations

from pathlib import Path

import click

from advconn.cli.options import PATH


@click.command()
@click.argument("results", nargs=-1, required=True, type=PATH, metavar="RESULTS...")
@click.option(
    "--table", type=click.Choice(["md", "latex", "csv"]), default="md", show_default=True, help="Format of the table."
)
def compare(results: tuple[Path, ...], table: str) -> None:
    """Put benchmarks side by side.

    The table has AUROC and detection rate of every detector of every run, on the same images.

    RESULTS are folders that `advconn benchmark --out` wrote, or their results.json.

    \b
    Example:
      advconn compare report-a/ report-b/ --table latex
    """
    from advconn.benchmark.report import tables
    from advconn.benchmark.report.folder import read

    records = {str(path): read(path) for path in results}
    click.echo(tables.print_tables(table, records))
