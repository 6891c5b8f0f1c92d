"""How long a browser takes to open a report from disk: until its script has run and until it has answered a search.

    .venv/bin/python tests/bench/bench_report.py --images 2000

The report is that of the tests: photographs, figures made up. Needs Debian's chromium.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[2]))
from jobs.common.report import render
from tests.report_pages import page_of


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "report.html"
        file.write_text(render(page_of(options.images)), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        ready, answered = [], []
        for _ in range(options.rounds):
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            clock = time.monotonic()
            page.goto(file.as_uri())
            page.wait_for_selector("html[data-ready]")
            ready.append(float(page.evaluate("document.documentElement.dataset.ready")) / 1000)
            page.fill("#search", "number 1234 ")
            page.wait_for_function("document.getElementById('found').textContent.startsWith('1 of')")
            answered.append(time.monotonic() - clock)
            page.close()
        browser.close()
        print(f"{options.images} images, {file.stat().st_size / 1e6:.1f} MB, the median of {options.rounds} rounds:")
        print(f"script done {statistics.median(ready):.2f} s, a search answered {statistics.median(answered):.2f} s")


if __name__ == "__main__":
    main()
