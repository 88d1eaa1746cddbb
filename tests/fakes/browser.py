"""A real browser without a window, which tells what it saw of a page."""

import html
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--no-first-run", "--enable-logging=stderr"]
FLAGS += ["--host-resolver-rules=MAP * ~NOTFOUND"]  # what a page asks of a network is missing, and complained of
VIRTUAL_MILLISECONDS = 8_000  # of the page's own clock, which runs as fast as the page is idle
DARK, LIGHT = 0, 1
# Each page stands in a frame: a window without a frame is never narrower than 500 pixels.
PROBE = """
<body>%s<pre id="found"></pre><script>
function seen(frame) {
  const page = frame.contentDocument;
  const width = page.documentElement.clientWidth;
  const pictures = [...page.querySelectorAll(".chart svg")];
  const drawn = [...page.querySelectorAll(".mark-line path, .mark-rect path")].filter((mark) => mark.getAttribute("d"));
  const charts = [...page.querySelectorAll(".chart")];
  return {
    title: page.title,
    width,
    scroll_width: page.documentElement.scrollWidth,
    color: frame.contentWindow.getComputedStyle(page.body).color,
    charts: Object.fromEntries(
      charts.map((chart) => [chart.getAttribute("aria-label"), drawn.filter((mark) => chart.contains(mark)).length])
    ),
    steps: [...page.querySelectorAll('.chart [aria-label^="X-axis"]')].map((axis) => axis.getAttribute("aria-label")),
    cut_off: pictures.filter((picture) => picture.getBoundingClientRect().right > width).length,
    requests: frame.contentWindow.performance.getEntriesByType("resource").map((request) => request.name),
    text: page.body.innerText,
  };
}
addEventListener("load", () => setTimeout(() => {
  document.getElementById("found").textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(seen));
}, 4000));
</script></body>
"""


@dataclass(frozen=True)
class Seen:
    """What a browser saw of a page, at each width, and what it complained of."""

    frames: list[dict[str, Any]]
    console: list[str]


def look_at(page: Path, *, widths: Sequence[int], scheme: int = LIGHT) -> Seen:
    """A page at each width."""
    return look_at_all({page: widths}, scheme=scheme)


def look_at_all(pages: Mapping[Path, Sequence[int]], *, scheme: int = LIGHT) -> Seen:
    """Several pages, each at its widths, in one browser: their frames in this order."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    frames = "".join(
        f'<iframe src="{page.as_uri()}" style="width:{width}px;height:900px"></iframe>'
        for page, widths in pages.items()
        for width in widths
    )
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder, "probe.html")
        probe.write_text(PROBE % frames)
        words = [browser, *FLAGS, f"--user-data-dir={folder}/user"]
        words += [f"--virtual-time-budget={VIRTUAL_MILLISECONDS}", f"--blink-settings=preferredColorScheme={scheme}"]
        done = subprocess.run(
            [*words, "--dump-dom", probe.as_uri()], capture_output=True, text=True, timeout=120, check=True
        )
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stdout[-2000:] + done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return Seen(json.loads(html.unescape(found.group(1))), console)
