"""Pages as readers see them, in a Chromium of this machine; and pages without what every page brings along."""

import importlib.util
import re
import shutil
import warnings
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = importlib.util.find_spec("playwright")
LACKING = "no Chromium on this machine" if not CHROMIUM else "" if DRIVER else "playwright is not installed"
needed = pytest.mark.skipif(bool(LACKING), reason=f"{LACKING}: no browser is driven")
LARGEST = 2_000_000  # bytes of a page
# A table may be wider than its box where a hint says so; a badge is never cut.
SEEN = """() => {
    const inside = (one) => {
        const box = one.getBoundingClientRect()
        return box.width === 0 || (box.left >= -1 && box.right <= innerWidth + 1)
    }
    const cut = [...document.querySelectorAll('.wide')].filter((box) => box.scrollWidth > box.clientWidth + 1)
    return {
        wider: document.documentElement.scrollWidth > innerWidth,
        silent: cut.filter((box) => !box.previousElementSibling?.matches('.hint.shown')).length,
        cut: cut.length,
        badges: [...document.querySelectorAll('.badge')].filter((one) => !inside(one)).map((one) => one.textContent),
        dead: [...document.querySelectorAll('figure.plot:not(.drawn)')].map((one) => one.id),
        paper: getComputedStyle(document.body).backgroundColor,
        ink: getComputedStyle(document.body).color,
    }
}"""


def own(page: str) -> str:
    """A page's HTML without style sheet, BokehJS, script, plots and icon: what the page itself says."""
    text = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    text = re.sub(r'<script (id="(bokeh|page)"|type="application/json")>.*?</script>', "", text, flags=re.DOTALL)
    return text.replace('<link rel="icon" href="data:,">', "")


def look(*files: Path) -> None:
    """Assert of each page that it opens by itself, says nothing on the console, is small, fits a screen and a phone
    with no column cut, is dark where that is wanted, draws its plots, and prints."""
    for file in files:
        assert file.stat().st_size < LARGEST, (file, file.stat().st_size)
    if LACKING:
        warnings.warn(f"{LACKING}: nobody has looked at {', '.join(file.name for file in files)}", stacklevel=2)
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for file in files:
            _look(browser, file)
        browser.close()


def _look(browser, file: Path) -> None:
    asked, said = [], []
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(file.resolve().as_uri())
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.wait_for_function("!window.Bokeh || Bokeh.documents.every((one) => one.is_idle)")
            seen = page.evaluate(SEEN)
            where = (file, width, scheme, seen)
            assert not seen["wider"] and not seen["silent"] and not seen["badges"] and not seen["dead"], where
            assert width > 390 or not seen["cut"], where  # a phone has its rows one below the other
            colors = [sum(map(int, seen[name][4:-1].split(","))) for name in ("paper", "ink")]  # 0 to 765
            dark, bright = sorted(colors)
            assert dark < 150 and bright > 600 and (colors[0] == dark) == (scheme == "dark"), where
    assert page.pdf()[:5] == b"%PDF-"
    assert not said and all(url.startswith(("file:", "data:")) for url in asked), (file, said, asked)
    page.close()
