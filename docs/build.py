"""Build the documentation as a site: ``python docs/build.py`` writes ``build/site``, and needs no network.

The pages link to source files as a code host shows them (``../worker/runner.py``). A site has no such files, so this
script stages the pages in ``build/docs`` and adds a page for every file they link to. `zensical` then builds the staged
pages in strict mode: a link or an anchor that leads nowhere fails the build.
"""

import re
import shutil
import subprocess
import sys
from os.path import relpath
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
DOCS: Final = ROOT / "docs"
STAGED: Final = ROOT / "build" / "docs"
PAGES: Final = STAGED / "pages"
SITE: Final = ROOT / "build" / "site"

#: ``](target)`` or ``](target#anchor)``, where the target is a path and no URL.
LINK: Final = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
_LANGUAGES: Final = {".py": "python", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".md": "markdown"}


def page_of(file: Path) -> Path:
    """Return where a file of the repository is shown: pages of ``docs/``, other Markdown and images, or source."""
    if file.suffix == ".md" and file.is_relative_to(DOCS):
        return PAGES / file.relative_to(DOCS)
    if file.suffix in (".md", ".png"):
        return PAGES / "project" / file.relative_to(ROOT)
    return PAGES / "source" / f"{file.relative_to(ROOT)}.md"


def stage(file: Path) -> set[Path]:
    """Write the page of a file. Return the files it links to."""
    page, linked = page_of(file), set[Path]()
    page.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".png":
        shutil.copy(file, page)
        return linked

    def rewritten(match: re.Match[str]) -> str:
        target = (file.parent / match[1]).resolve()
        if not target.is_file():
            raise SystemExit(f"{file.relative_to(ROOT)}: {match[1]} is not a file")
        linked.add(target)
        return f"]({relpath(page_of(target), page.parent)}{match[2] or ''})"

    text = file.read_text()
    if file.suffix == ".md":
        page.write_text(LINK.sub(rewritten, text))
    else:
        language = _LANGUAGES.get(file.suffix, "text")
        page.write_text(f"# `{file.relative_to(ROOT)}`\n\n~~~~ {language}\n{text}~~~~\n")
    return linked


def main() -> int:
    """Stage all pages and what they link to, and build the site."""
    shutil.rmtree(STAGED, ignore_errors=True)
    waiting, staged = set(DOCS.rglob("*.md")), set[Path]()
    while waiting:
        file = waiting.pop()
        staged.add(file)
        waiting |= stage(file) - staged
    shutil.copy(DOCS / "zensical.toml", STAGED)
    zensical = Path(sys.executable).with_name("zensical")
    built = subprocess.run([zensical, "build", "--strict"], cwd=STAGED, check=False)  # noqa: S603 (a tool of the lock)
    if built.returncode == 0:
        shutil.rmtree(SITE, ignore_errors=True)
        shutil.move(STAGED / "site", SITE)
        print(f"{SITE.relative_to(ROOT)}/index.html")
    return built.returncode


if __name__ == "__main__":
    sys.exit(main())
