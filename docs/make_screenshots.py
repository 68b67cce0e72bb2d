"""Pictures of the report for the documentation.

    python docs/make_screenshots.py runs/mine

Without a run, the demo of the README is searched first, which takes minutes. Needs the extra
``browser`` and a Chromium.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from autoprune.report.html import write_report
from autoprune.run import search
from autoprune.run.results import read_results
from autoprune.testing.browser import Scheme, chromium, opened

IMAGES = Path(__file__).resolve().parent / "images"

#: File to width and height in CSS pixels, colours, and the section at the top of the picture.
VIEWS: dict[str, tuple[int, int, Scheme, str]] = {
    "report": (1100, 1130, "light", ""),
    "report-dark": (1100, 1130, "dark", ""),
    "report-network": (1100, 1250, "light", "network"),
    "report-search": (1100, 1120, "light", "search"),
    "report-phone": (390, 1240, "light", ""),
}


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", type=Path, help="run directory; default: the demo")
    run = parser.parse_args().run
    with tempfile.TemporaryDirectory() as folder:
        report_pictures(run or demo(Path(folder) / "demo"), Path(folder))


def demo(folder: Path) -> Path:
    """Search the demo and return its run directory."""
    return search("digits", device="jetson", budget_ms=10.0, trials=96, output=folder).directory


def report_pictures(run: Path, scratch: Path) -> None:
    """Draw the page of a run anew and take its pictures.

    Args:
        run: The run directory.
        scratch: A folder for the page.
    """
    page = scratch / "report.html"
    write_report(read_results(run), page)
    IMAGES.mkdir(exist_ok=True)
    with chromium() as browser:
        for name, (width, height, scheme, section) in VIEWS.items():
            with opened(browser, page, width=width, height=height, scheme=scheme) as view:
                if section:
                    view.page.evaluate(f"document.querySelector('#{section}').scrollIntoView()")
                view.page.screenshot(path=IMAGES / f"{name}.png")


if __name__ == "__main__":
    main()
