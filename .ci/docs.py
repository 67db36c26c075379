"""Build the documentation as a site: README, the guide, CONTRIBUTING, what was measured, and every public name.

    python .ci/docs.py [OUT]

Needs mkdocs and mkdocstrings[python]; a warning is an error.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    **{f"advconn/docs/{page.name}": f"guide/{page.name}" for page in sorted((ROOT / "advconn" / "docs").glob("*.md"))},
    "advconn/README.md": "inside.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "measured.md",
}
CONFIG = """
site_name: advconn
docs_dir: {docs}
site_dir: {out}
strict: true
theme: readthedocs
validation: {{links: {{anchors: ignore}}}}
plugins:
  - search
  - mkdocstrings:
      handlers:
        python:
          paths: ["{root}"]
          options: {{docstring_style: google, show_source: false, members_order: source, heading_level: 2,
                    docstring_options: {{warnings: false}}}}
nav:
  - Start: index.md
  - Guide: [{guide}]
  - Where things live: inside.md
  - What was measured: measured.md
  - Contributing: contributing.md
  - Changes: changelog.md
  - Security: security.md
  - Names: [{names}]
"""


def copied(source: str, docs: Path) -> None:
    """One page; links to pages and pictures go on working, links to other files become text."""
    folder = (ROOT / source).parent

    def link(found: re.Match[str]) -> str:
        mark, text, target = found.groups()
        file, _, anchor = target.partition("#")
        if not file or "://" in file:
            return found[0]
        path = (folder / file).resolve().relative_to(ROOT)
        if str(path) in PAGES:
            here = Path(PAGES[source]).parent
            return f"{mark}[{text}]({os.path.relpath(PAGES[str(path)], here)}{'#' * bool(anchor)}{anchor})"
        if path.suffix in (".png", ".svg"):
            (docs / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, docs / path)
            return f"{mark}[{text}]({path})"
        return text

    text = re.sub(r"(!?)\[([^\]]*)\]\(([^)]+)\)", link, (ROOT / source).read_text())
    (docs / PAGES[source]).write_text(text)


def modules() -> list[str]:
    """Every module with a public name."""
    out = []
    for path in sorted((ROOT / "advconn").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        tree = ast.parse(path.read_text())
        kinds = (ast.FunctionDef, ast.ClassDef)
        if any(isinstance(node, kinds) and not node.name.startswith("_") for node in tree.body) and not {
            "cli",
            "docs",
        } & {*parts}:
            out.append(".".join(parts).removesuffix(".__init__"))
    return out


def main() -> None:
    """Write the pages, and let mkdocs build them."""
    out = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as folder:
        docs = Path(folder) / "docs"
        (docs / "names").mkdir(parents=True)
        (docs / "guide").mkdir()
        for source in PAGES:
            copied(source, docs)
        for name in modules():
            (docs / "names" / f"{name}.md").write_text(f"# {name}\n\n::: {name}\n")
        names = ", ".join(f"names/{name}.md" for name in modules())
        guide = ", ".join(page for page in PAGES.values() if page.startswith("guide/"))
        config = Path(folder) / "mkdocs.yml"
        config.write_text(
            CONFIG.format(docs=docs, out=out or Path(folder) / "site", root=ROOT, names=names, guide=guide)
        )
        sys.exit(
            subprocess.run([sys.executable, "-m", "mkdocs", "build", "-q", "-f", str(config)], check=False).returncode
        )


if __name__ == "__main__":
    main()
