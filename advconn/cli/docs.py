"""advconn docs: the guide, in a browser or in the terminal."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from advconn.cli.output import note
from advconn.errors import DataError, expected_one_of

GUIDE = Path(__file__).parents[1] / "docs"
PAGES = (
    "index", "how-it-decides", "verdicts-and-fields", "classifiers-and-images", "fitting-and-calibrating", "serving",
    "benchmarking", "security-and-limits", "papers-and-studies",
)  # fmt: skip


@click.command()
@click.argument("page", default="index", metavar="[PAGE]")
@click.option("--text", is_flag=True, help="Print the page instead of opening a browser.")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Write all pages as HTML there, and open none."
)
def docs(page: str, text: bool, out: Path | None) -> None:
    """Open the guide in a browser.

    \b
    PAGE is one of:
      index, how-it-decides, verdicts-and-fields, classifiers-and-images, fitting-and-calibrating, serving,
      benchmarking, security-and-limits, papers-and-studies

    \b
    Example:
      advconn docs
      advconn docs serving --text
    """
    if page not in PAGES:
        raise DataError(f"no page {page!r}: {expected_one_of(page, PAGES)}")
    if text:
        click.echo_via_pager((GUIDE / f"{page}.md").read_text(encoding="utf-8"))
        return
    from advconn.cli.guide_html import write_guide
    from advconn.runtime.cache import cache_folder

    folder = out or (cache_folder() or Path(tempfile.mkdtemp(prefix="advconn-"))) / "docs"
    write_guide(GUIDE, folder)
    first = folder / f"{page}.html"
    if out is None:
        click.launch(str(first))
    note(f"{first}: the guide")
