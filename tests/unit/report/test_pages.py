"""Every page: what it says, that it escapes, sorts and opens anywhere."""

import itertools
import re

import browser
import pytest
import sample_pages
from sample_pages import WILD


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    return sample_pages.every(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def said(pages):
    """Name -> what each page itself says."""
    return {name: browser.own(file.read_text(encoding="utf-8")) for name, file in pages.items()}


def test_no_page_fetches_or_runs_what_data_say(pages, said):
    for name, text in said.items():
        assert WILD not in text and "<script" not in text and "http" not in text, name
        assert not re.search(r'(src|href)="(?!#|data:|\./)', text) and "{{" not in text, name
        whole = pages[name].read_text(encoding="utf-8")
        scripts = re.findall(r"<script([^>]*)>", whole)
        assert set(scripts) <= {' id="bokeh"', ' id="page"', ' type="application/json"'}, name
        for item in re.findall(r'<script type="application/json">(.*?)</script>', whole, re.DOTALL):
            assert "<" not in item, name


def test_every_page_has_a_head_and_contents(said):
    for name, text in said.items():
        ids = re.findall(r'<h2 id="([\w-]+)">', text)
        assert len(ids) >= 2 and len(ids) == len(set(ids)), name
        assert re.findall(r'<a href="#([\w-]+)">', text) == ids, name
        assert text.count("<h1>") == 1 and '<p class="kind">tunebook · ' in text, name


def test_every_score_has_an_interval_and_a_verdict_in_words(said):
    text = said["run"]
    assert "Instructions in seen phrasings" in text and "pocket_seen" in text
    assert "▲ better" in text and "▼ regressed" in text and "● no difference shown" in text
    assert re.search(r"\+75\.0 points<small>\+\d\d\.\d to \+\d\d\.\d</small>", text)
    assert "Forgetting: regressed. World knowledge 100.0 % → 85.0 % (regressed, -" in text
    assert re.search(r'<div class="verdict mixed"><p>Better on 1 of 2 tasks: ', text)


def test_a_run_says_what_it_cost_beside_the_forecast_and_what_comes_next(said):
    text = said["run"]
    assert '<td class="n" data-head="Measured / forecast">1.26</td>' in text
    assert "Tokens trained</span><b>9,000</b><span>in 100 steps; the data has 700</span>" in text
    assert "7.0 s (9.0 %)" in text and "of 40 of 300 held-out rows" in text and "was 7.000; 40 of 300 rows" in text
    for command in (
        "tunebook chat",
        "tunebook eval",
        "tunebook export",
        "tunebook cp lora_alpaca",
        "tunebook runs runs",
    ):
        assert f"<pre>{command}" in text
    for title in ("Rewards", "Margin of rewards", "Learning rate", "Gradient norm", "Speed", "Memory"):
        assert f"<figcaption>{title}\n" in text
    assert "cut at 64 tokens" in text and "An earlier version has no `asked`." in text
    assert text.count('data-changed="true"') == 1 and text.count('data-changed="false"') == 1


def test_what_was_not_measured_is_said(said):
    text = said["distilled"]
    assert "No lm-eval suite was run" in text and "Forgetting was not measured" in text
    assert "Divergence from the teacher" in text and "of the teacher: 0.200" in text
    assert "Learning rate" not in text


def test_the_table_marks_what_cannot_be_told_apart(said):
    text = said["table"]
    assert "● not distinguishable" in text and "▲ best" in text and "▼ worse" in text
    assert "best is sft_alpaca; not distinguishable from it: lora_alpaca" in text
    assert "they were not measured here" in text and "rank 16, rate 0.002" in text


def test_labels_of_tasks_and_plain_names():
    from tunebook.common.report import labels

    assert labels.task("pocket_text") == "General text" and labels.task("my_own_task") == "my own task"
    assert labels.metric("exact_match,flexible") == "exact match, flexible"


def test_intervals_of_a_share():
    from scipy.stats import binomtest

    from tunebook.common.report import summary

    for right, items in ((50, 100), (0, 10), (10, 10), (1, 334), (7, 8)):
        expected = binomtest(right, items).proportion_ci(0.95, method="wilson")
        assert summary.wilson(right / items, items) == pytest.approx(tuple(expected), abs=1e-5)


def test_reports_of_earlier_versions_have_pages(tmp_path):
    from tunebook.common.report import run

    old = sample_pages.report()
    del old["scores"]["tests"]
    text = browser.own(run._page(old, [], sample_pages.extra(), tmp_path))
    assert text.count("● not tested") == 4  # two tasks, as tiles and in the table
    assert "regressed: ..." in text


@browser.needed
def test_pages_in_a_browser(pages):
    browser.look(*pages.values())


@browser.needed
def test_a_reader_sorts_filters_zooms_and_turns_the_lights_off(pages):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser.CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
        page.goto(pages["runs"].resolve().as_uri())
        first = "document.querySelector('#runs ~ .wide tbody tr').cells[0].textContent"
        head = page.get_by_role("button", name="Run").first
        head.press("Enter")  # by keyboard
        assert page.evaluate("document.querySelector('thead th').ariaSort") == "ascending"
        assert page.evaluate(first).startswith("deep/stopped")
        head.click()
        assert page.evaluate("document.querySelector('thead th').ariaSort") == "descending"
        assert page.evaluate(first).startswith("running")
        page.get_by_role("button", name="Held-out loss").click()  # what has no value stays last
        losses = page.evaluate(
            "[...document.querySelectorAll('table')[0].tBodies[0].rows].map((one) => one.cells[5].dataset.sort)"
        )
        assert losses == sorted(losses, key=float)
        page.goto(pages["run"].resolve().as_uri())
        page.wait_for_function("document.querySelectorAll('figure.plot:not(.drawn)').length === 0")
        page.get_by_label("only answers that changed").check()
        assert page.locator("[data-changed]:visible").count() == 1
        plot = "Bokeh.index.roots[0].model"
        page.locator("figure.plot .log").first.click()
        assert page.evaluate(f"{plot}.y_scale.type") == "LogScale" and page.evaluate(f"{plot}.left[1].visible")
        rough = page.evaluate(f"[...{plot}.renderers.find((one) => one.tags.includes('smooth')).data_source.data.y]")
        page.locator("figure.plot .smooth").first.fill("0.9")
        fine = page.evaluate(f"[...{plot}.renderers.find((one) => one.tags.includes('smooth')).data_source.data.y]")
        steps = [sum(abs(a - b) for a, b in itertools.pairwise(one)) for one in (rough, fine)]
        assert len(rough) == len(fine) == 100 and steps[1] < steps[0] / 3
        page.locator("figure.plot .legend button").first.click()
        assert page.evaluate(f"{plot}.renderers.filter((one) => !one.visible).length") >= 1
        paper = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(paper)
        page.locator(".theme").click()
        assert page.evaluate(paper) != light
        chromium.close()
