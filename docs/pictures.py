"""Make docs/images/report-{light,dark}.png from the report of a quickstart run, with chromium.

python3 -m docs.pictures runs/quickstart
"""

import subprocess
import sys
import tempfile
from pathlib import Path

IMAGES_DIR = Path(__file__).parent / "images"
SIZE = (1200, 1020)  # pixels of a picture, from the top of the page
MAX_BYTES = 300_000


def main(run_dir: Path) -> None:
    """Take both pictures; an error if one is too large for a page that is opened on a phone."""
    page = (run_dir / "report.html").resolve()
    for scheme in ("light", "dark"):
        path = IMAGES_DIR / f"report-{scheme}.png"
        take_picture(page, path, is_dark=scheme == "dark")
        if path.stat().st_size > MAX_BYTES:
            raise SystemExit(f"{path}: is larger than {MAX_BYTES:,} bytes; make SIZE smaller")


def take_picture(page: Path, path: Path, *, is_dark: bool) -> None:
    """The top of a page as PNG, in the colors that a reader with that preference sees."""
    with tempfile.TemporaryDirectory() as profile:
        command = ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={profile}"]
        command += [f"--window-size={SIZE[0]},{SIZE[1]}", "--virtual-time-budget=5000", f"--screenshot={path}"]
        # Blink's name for the preference of the system: 0 is dark, 1 is light.
        command += [f"--blink-settings=preferredColorScheme={0 if is_dark else 1}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
