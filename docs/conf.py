"""The site: `make docs` writes it to build/docs; a broken link or anchor is an error.

Pages are plain Markdown, so that they read as well in a repository browser: what the site adds (its tables of
contents) is here and not in them. Sources are those of the project's root, so that README.md is the first page.
"""

import shutil
from collections.abc import Sequence
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
smartquotes = False  # `--flag` in a table of results keeps its dashes
html_theme = "furo"
html_title = project
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}

RESULTS = {
    "README": "Overview",
    "overhead": "Overhead of a step",
    "step_settings": "Step settings",
    "save_speed": "Save speed",
    "host_waits": "Host waits",
}
RESULTS |= {"faults": "Faults", "generate": "Generate", "plans": "Plans", "gpu": "GPUs", "data_path": "Data path"}
RESULTS |= {"preprocess": "Preprocess", "duplicates": "Duplicates", "tokenizer_training": "Tokenizer training"}
RESULTS |= {"performance-log": "Performance log"}
GUIDES = {
    "preprocess": "Preprocess",
    "train": "Train",
    "continue-pretraining": "Continue from weights",
    "phases": "Phases",
    "resume-and-stop": "Resume and stop",
    "monitor": "Monitor",
}
GUIDES |= {"generate": "Generate", "evaluate": "Evaluate", "finetune": "Finetune", "serve": "Serve", "hub": "Hub"}
GUIDES |= {"performance": "Performance", "multi-gpu": "From one GPU to eight", "long-context": "Long context"}
GUIDES |= {"several-machines": "Several machines", "container": "Containers"}
GUIDES |= {"profile": "Profile a step", "provenance": "Provenance"}
WALKS = ("life-of-a-token", "life-of-a-step", "life-of-a-checkpoint")
EXPLANATION = ("architecture", *WALKS, "gpu-readiness", "parallelism", "decisions", "acceptance")
NAVIGATION = {
    "Getting started": [f"docs/getting-started/{name}" for name in ("quickstart", "install", "first-run", "hardware")],
    "Guides": [f"{title} <docs/guides/{name}>" for name, title in GUIDES.items()],
    "Reference": ["docs/reference/programs", "docs/reference/recipes", "docs/reference/*"],
    "Explanation": [f"docs/explanation/{name}" for name in EXPLANATION],
    "Results": [f"{title} <docs/benchmarks/{name}>" for name, title in RESULTS.items()],
    "Contributing": ["docs/contributing/setup", "docs/contributing/*"],
    "More": ["All pages <docs/README>", "docs/coming-from", "docs/glossary", "CHANGELOG", "SECURITY"],
}
PROGRAMS = [f"docs/reference/cli/{name}" for name in ("preprocess", "pretrain", "generate", "*")]


def toctree(pages: Sequence[str], *, caption: str) -> str:
    """A hidden table of contents; a page that is listed is not repeated by a pattern."""
    names = "\n".join(page.replace("docs/", "/docs/") for page in pages)
    return f"\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {caption}\n{names}\n```\n"


def add_navigation(_: Sphinx, page: str, source: list[str]) -> None:
    """Give the first page and the list of programs their tables of contents."""
    if page == root_doc:
        source[0] += "".join(toctree(pages, caption=caption) for caption, pages in NAVIGATION.items())
    elif page == "docs/reference/programs":
        source[0] += toctree(PROGRAMS, caption="Programs")


def finish(app: Sphinx, error: Exception | None) -> None:
    """Put the pictures of README.md where its HTML expects them, and an index.html beside it."""
    if error is None:
        shutil.copytree(Path(app.srcdir) / "docs/images", Path(app.outdir) / "docs/images", dirs_exist_ok=True)
        shutil.copyfile(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def setup(app: Sphinx) -> None:
    """Connect both to the build."""
    app.connect("source-read", add_navigation)
    app.connect("build-finished", finish)
