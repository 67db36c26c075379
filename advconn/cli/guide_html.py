"""The guide's pages as HTML."""

from __future__ import annotations

import re
from pathlib import Path

from advconn.files import atomic_file, wrap_os_errors

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} - advconn</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem 1rem 4rem; }}
nav {{ display: flex; flex-wrap: wrap; gap: .3rem 1rem; padding-bottom: .6rem; border-bottom: 1px solid #8886; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; }}
th, td {{ border: 1px solid #8886; padding: .3rem .6rem; text-align: left; vertical-align: top; }}
code {{ font-size: .9em; background: #8882; padding: .1em .25em; border-radius: .2em; }}
pre {{ overflow-x: auto; background: #8882; padding: .7rem; }} pre code {{ background: none; padding: 0; }}
a {{ color: #2a6fdb; }}
</style></head><body>
<nav>{links}</nav>
{body}
</body></html>
"""


def write_guide(source: Path, folder: Path) -> None:
    """Write every page of the guide as an HTML file that needs nothing else.

    Args:
        source: folder of Markdown pages.
        folder: that gets the HTML pages; it is made if it is not there.

    Raises:
        DataError: a folder that cannot be written.
    """
    from markdown_it import MarkdownIt

    markdown = MarkdownIt("commonmark").enable("table")
    pages = {file.stem: file.read_text(encoding="utf-8") for file in sorted(source.glob("*.md"))}
    titles = {name: text.partition("\n")[0].removeprefix("# ") for name, text in pages.items()}
    order = ["index", *re.findall(r"\]\(([\w-]+)\.md\)", pages["index"])]
    links = " ".join(f'<a href="{name}.html">{titles[name]}</a>' for name in order)
    with wrap_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        body = markdown.render(re.sub(r"\]\(([\w-]+)\.md(#[\w-]+)?\)", r"](\1.html\2)", text))
        with atomic_file(folder / f"{name}.html") as partial:
            partial.write_text(PAGE.format(title=titles[name], links=links, body=body), encoding="utf-8")
