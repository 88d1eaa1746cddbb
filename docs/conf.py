"""The site: `make docs` writes it to build/docs; a broken link or anchor is an error.

Pages are plain Markdown, so that they read as well in a repository browser: what the site adds (its tables of
contents) is here and not in them. Sources are those of the project's root, so that README.md is the first page.
"""

import shutil
from pathlib import Path

from sphinx.application import Sphinx

project = "Pretraining suite"
author = "the authors"
extensions = ["myst_parser"]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "docs/**/*.md"]
exclude_patterns = [".*", "build", "runs", "blocks", "tests", "data", "benchmarks", "pretraining"]
myst_heading_anchors = 3  # `page.md#a-heading` is checked, too
myst_links_external_new_tab = False
suppress_warnings = ["myst.header", "misc.highlighting_failure"]
nitpicky = True
html_theme = "furo"
html_title = project
html_copy_source = False
html_show_sphinx = False
html_static_path = ["static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}

NAVIGATION = {
    "Getting started": "docs/{README,getting-started/quickstart,getting-started/install,getting-started/first-run,"
    "getting-started/hardware}",
    "Guides": "docs/guides/{preprocess,train,resume-and-stop,monitor,generate,evaluate,finetune,hub,serve,"
    "long-context,performance,multi-gpu,provenance}",
    "Reference": "docs/reference/{programs,recipes,deepspeed-config,file-formats,errors,guarantees,packages}",
    "Explanation": "docs/explanation/{architecture,life-of-a-token,life-of-a-step,life-of-a-checkpoint,decisions}",
    "Results": "docs/benchmarks/*",
    "Contributing": "docs/contributing/{setup,style,testing,releasing}",
    "More": "{docs/coming-from,docs/glossary,CHANGELOG,SECURITY}",
}


def toctree(pattern: str, *, caption: str = "") -> str:
    """A hidden table of contents; `{a,b}` in the pattern expands to each of its names."""
    before, _, rest = pattern.partition("{")
    names = [f"/{before}{name}" for name in rest.rstrip("}").split(",")]
    return "\n".join(["", "```{toctree}", ":hidden:", ":glob:", f":caption: {caption}", *names, "```", ""])


def add_navigation(_: Sphinx, page: str, source: list[str]) -> None:
    """Give the first page and the list of programs their tables of contents."""
    if page == root_doc:
        source[0] += "".join(toctree(pattern, caption=caption) for caption, pattern in NAVIGATION.items())
    elif page == "docs/reference/programs":
        source[0] += toctree("docs/reference/cli/{preprocess,pretrain,generate,finetune,train_tokenizer,*}").replace(
            ":caption: \n", ""
        )


def finish(app: Sphinx, error: Exception | None) -> None:
    """Put the pictures of README.md where its HTML expects them, and an index.html beside it."""
    if error is None:
        shutil.copytree(Path(app.srcdir) / "docs/images", Path(app.outdir) / "docs/images", dirs_exist_ok=True)
        shutil.copyfile(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def setup(app: Sphinx) -> None:
    """Connect both to the build."""
    app.connect("source-read", add_navigation)
    app.connect("build-finished", finish)
