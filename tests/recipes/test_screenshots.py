"""Pages of real runs on the bundled model, looked at; UPDATE_SCREENSHOTS=1 makes the pictures of docs/assets anew."""

import io
import os

import browser
import forked
import pytest
from paths import ROOT

from tunebook.common import commands

ASSETS = ROOT / "docs" / "assets"
STEPS = 60
LARGEST = 150_000  # bytes of a picture
# picture -> (page, width, height, colors, what is scrolled to)
PICTURES = {
    "report.png": ("runs/lora_alpaca/report.html", 1280, 1000, "light", ""),
    "report_curves.png": ("runs/lora_alpaca/report.html", 1280, 900, "dark", "#curves"),
    "report_phone.png": ("runs/lora_alpaca/report.html", 390, 844, "light", ""),
    "table.png": ("runs/table/table.html", 1280, 900, "light", ""),
    "compare.png": ("compared.html", 1280, 900, "light", ""),
    "runs.png": ("runs.html", 1280, 1000, "light", ""),
}


def trained(folder, *flags):
    done = forked.run(ROOT / "recipes" / "lora_alpaca.py", "--max_steps", STEPS, "--output_dir", folder, *flags)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    place = tmp_path_factory.mktemp("shown")
    here = os.getcwd()
    os.chdir(place)
    try:
        trained("runs/lora_alpaca")
        trained("runs/table/lora_alpaca_lora_r=4", "--lora_r", 4)
        (place / "runs/table/lora_alpaca").symlink_to(place / "runs/lora_alpaca")
        words = ["table", "--recipes", "lora_alpaca", "lora_alpaca:lora_r=4", "--output_dir", "runs/table"]
        commands.main([*words, "--max_steps", str(STEPS)])
        commands.main(
            ["compare", *(f"runs/lora_alpaca/eval/{when}" for when in ("before", "after")), "--html", "compared.html"]
        )
        commands.main(["runs", "runs", "--html", "runs.html"])
    finally:
        os.chdir(here)
    return place


@pytest.mark.recipe
@pytest.mark.slow
@browser.needed
def test_pages_of_real_runs_and_their_pictures(pages):
    files = sorted({pages / page for page, *_ in PICTURES.values()})
    browser.look(*files)
    if not os.environ.get("UPDATE_SCREENSHOTS"):
        assert all((ASSETS / name).exists() for name in PICTURES)
        return
    shoot(pages)
    assert all((ASSETS / name).stat().st_size < LARGEST for name in PICTURES)


def shoot(pages):
    """Write the pictures of `pages`, a folder, in few colors."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser.CHROMIUM, args=["--no-sandbox"])
        for name, (file, width, height, scheme, place) in PICTURES.items():
            page = chromium.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto((pages / file).resolve().as_uri() + place)
            page.wait_for_function("!window.Bokeh || Bokeh.documents.every((one) => one.is_idle)")
            page.wait_for_timeout(500)
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(200)
            picture.save(ASSETS / name, optimize=True)
            page.close()
        chromium.close()
