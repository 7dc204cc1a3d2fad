"""The page in a browser: no error, nothing wider than the screen, light and dark."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest

from stackwise_core.run_files.reading import read_runs
from stackwise_report.page import page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on PATH")
# Added to a copy of the page, which has no script of its own.
PROBE = """<script>
addEventListener("load", () => {
  const wide = document.documentElement.clientWidth, start = each => each.outerHTML.slice(0, 99);
  const out = [...document.querySelectorAll("body *")].filter(
    each => each.getBoundingClientRect().right > wide + 1 && !each.closest(".scroll, pre, svg"));
  const cut = [...document.querySelectorAll("dd, dt, h1, h2, h3, p, li, summary")].filter(
    each => each.scrollWidth > each.clientWidth + 1 && getComputedStyle(each).display != "inline");
  const style = (of, what) => getComputedStyle(document.querySelector(of))[what];
  parent.postMessage({
    width: [innerWidth, document.documentElement.scrollWidth], out: out.map(start), cut: cut.map(start),
    paper: style("body", "backgroundColor"), ink: style("h1", "color"),
    line: style("svg path[style*='--s0']", "stroke"),
    plots: [...document.querySelectorAll("svg")].filter(each => each.clientHeight > 100).length,
    loaded: performance.getEntriesByType("resource").map(each => each.name)}, "*");
});
</script></body>"""
# A window may not be as narrow as a phone; a frame may.
FRAMES = """<!DOCTYPE html><html><body><script>
const seen = [];
addEventListener("message", event => {
  seen.push(event.data);
  document.documentElement.setAttribute("data-seen", encodeURIComponent(JSON.stringify(seen)));
});
</script>FRAMES</body></html>"""
WIDTHS = (390, 820, 1280)


def seen(tmp_path: Path, pages: dict[str, str], *, dark: bool) -> list[dict]:
    """A browser's view of pages on screens of each width."""
    frames = []
    for name, html in pages.items():
        (tmp_path / f"{name}.html").write_text(html.replace("</body>", PROBE))
        frames += [f'<iframe src="{name}.html" style="width: {width}px; border: 0"></iframe>' for width in WIDTHS]
    (tmp_path / "frames.html").write_text(FRAMES.replace("FRAMES", "".join(frames)))
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            "--hide-scrollbars",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr",
            "--window-size=1400,1000",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--virtual-time-budget=5000",
            "--dump-dom",
            (tmp_path / "frames.html").as_uri(),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(unquote(found[1]))


def brightness(colour: str) -> float:
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3


@pytest.fixture(scope="module")
def pages(tmp_path_factory, finished) -> dict[str, str]:
    """One run with a long name that isn't finished, and several."""
    here = tmp_path_factory.mktemp("pages")
    long = Path(shutil.copytree(finished, here / ("a-run-with-a-name-that-is-" + 9 * "rather-" + "long")))
    (long / "finished.json").rename(long / "progress.json")  # not in the manifest: a gap to tell of
    return {"one": page(read_runs([long]), {}, "1"), "several": page(read_runs([finished, long]), {}, "1")}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_every_screen(tmp_path, pages, dark):
    """Nothing is cut off, and colours are those of the mode, in plots as well."""
    found = seen(tmp_path, pages, dark=dark)
    assert sorted(each["width"] for each in found) == [[width, width] for width in WIDTHS for _ in pages]
    for each in found:
        assert (each["out"], each["cut"], each["loaded"], each["plots"]) == ([], [], [], 9)
        assert (brightness(each["paper"]) < 60) == dark
        assert (brightness(each["ink"]) > 180) == dark
        assert each["line"] == ("rgb(95, 176, 236)" if dark else "rgb(0, 104, 168)")
