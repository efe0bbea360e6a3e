"""A page as a reader sees it, in a Chromium of this machine."""

import importlib.util
import shutil
import warnings
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = importlib.util.find_spec("playwright")
LACKING = "no Chromium on this machine" if not CHROMIUM else "" if DRIVER else "playwright is not installed"
needed = pytest.mark.skipif(bool(LACKING), reason=f"{LACKING}: no browser is driven")
SEEN = """() => {
    const wider = document.documentElement.scrollWidth > window.innerWidth
    const style = getComputedStyle(document.body), bare = style.backgroundColor === 'rgba(0, 0, 0, 0)'
    const ink = style.color
    if (bare) document.body.style.backgroundColor = 'Canvas'  // what shows through
    return { wider, paper: getComputedStyle(document.body).backgroundColor, ink }
}"""


def look(file: Path) -> None:
    """Assert that it opens by itself, says nothing on the console, fits a phone, and is dark where that is wanted."""
    if LACKING:
        warnings.warn(f"{LACKING}: nobody has looked at {file.name}", stacklevel=2)
        return
    from playwright.sync_api import sync_playwright

    asked, said = [], []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width in (1200, 360):
            for scheme in ("light", "dark"):
                page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
                page.on("request", lambda request: asked.append(request.url))
                page.on("console", lambda message: said.append(message.text))
                page.on("pageerror", lambda error: said.append(str(error)))
                page.goto(file.resolve().as_uri())
                seen = page.evaluate(SEEN)
                assert not seen["wider"], (file, width)
                colours = [sum(map(int, seen[name][4:-1].split(","))) for name in ("paper", "ink")]  # 0 to 765
                dark, bright = sorted(colours)
                assert dark < 150 and bright > 600 and (colours[0] == dark) == (scheme == "dark"), (file, scheme)
                page.close()
        browser.close()
    assert not said and all(url.startswith(("file:", "data:")) for url in asked), (said, asked)
