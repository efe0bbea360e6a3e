"""`tunebook rate`: blind votes on a page, kept through a kill, and what they add up to."""

import csv
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from html.parser import HTMLParser

import browser
import numpy as np
import pytest
from paths import ROOT
from scipy import stats
from statsmodels.stats import inter_rater

from tunebook.common import commands
from tunebook.common.errors import UserError
from tunebook.evals import rating
from tunebook.evals.rating import items as rating_items
from tunebook.evals.rating import summary
from tunebook.evals.rating.items import Item, RatingItems
from tunebook.evals.rating.votes import Vote, Votes
from tunebook.evals.stats import agreement, paired

HOSTILE = (
    "<script>window.hit=1</script><img src=x onerror='window.hit=1'>",
    "${window.hit=1} {{value}} `x` </div> **b**",
)


def rows(path, answers, names=("prompt", "answer")):
    lines = [json.dumps({names[0]: f"Question {place}?", names[1]: text}) for place, text in enumerate(answers)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def many(count=20, seed=0):
    return RatingItems(("one", "two"), tuple(Item(f"Q{n}", (f"b{n}", f"t{n}")) for n in range(count)), seed)


def vote(item, rater="ann", better="tuned", helpfulness=(2, 4), safety=(5, 5), first="base"):
    return Vote(item.key, rater, better, first, helpfulness, safety)


def rate(capsys, *words):
    """Exit code, output and errors of a command."""
    code = 0
    try:
        commands.main(["rate", *words])
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


def test_answers_are_joined_on_the_prompt(tmp_path):
    base = rows(tmp_path / "base.jsonl", ["a", "b"])
    tuned = tmp_path / "tuned.csv"
    out = io.StringIO()
    csv.writer(out).writerows([["instruction", "input", "output"], ["Question 1?", "", "d"], ["Question 0?", "", "c"]])
    tuned.write_text(out.getvalue(), encoding="utf-8")
    found = rating_items.from_answers([base, str(tuned)], seed=0)
    assert found.items == (Item("Question 0?", ("a", "c")), Item("Question 1?", ("b", "d")))
    assert found.names == (base, str(tuned))


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (
            ['{"prompt": "Question 0?", "answer": "x"}'],
            r"1 prompts have an answer in .* alone, the first: 'Question 1\?'",
        ),
        (['{"prompt": "Question 0?", "answer": "x"}'] * 2, "row 2: repeated prompt"),
        (['{"prompt": "Question 0?", "said": "x"}'], r"row 1: none of answer, output.*; it has prompt, said"),
        (['{"prompt": "Question 0?", "answer": null}'], "row 1: answer: expected text, found a NoneType"),
        (["[1]"], "row 1: expected an object, found a list"),
        (['{"prompt": " ", "answer": ""}'], "the prompt is empty"),
        ([""], "has no rows"),
    ],
)
def test_answers_that_cannot_be_rated(tmp_path, capsys, lines, says):
    base = rows(tmp_path / "base.jsonl", ["a", "b"])
    (tmp_path / "tuned.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = ["--answers", base, str(tmp_path / "tuned.jsonl"), "--output_dir", str(tmp_path / "out"), "--summary"]
    code, _, err = rate(capsys, *words)
    assert code == 2 and re.search(says, err) and "--dataset" not in err
    assert not (tmp_path / "out").exists()


def test_a_report_and_a_folder(tmp_path, capsys):
    sample = {"prompt": "P", "before": "x", "after": "y", "reference": "z"}
    (tmp_path / "report.json").write_text(json.dumps({"samples": [sample]}), encoding="utf-8")
    out = tmp_path / "out"
    code, said, _ = rate(capsys, "--report", str(tmp_path), "--output_dir", str(out), "--summary")
    assert code == 0 and "0 of 1 items rated, 0 votes: nobody yet" in said
    assert rating_items.load(out).items == (Item("P", ("x", "y")),)
    base, tuned = rows(tmp_path / "b.jsonl", ["a"]), rows(tmp_path / "t.jsonl", ["b"])
    code, _, err = rate(capsys, "--answers", base, tuned, "--output_dir", str(out), "--summary")
    assert code == 2 and "holds a rating of other answers" in err
    for samples, says in {
        "null": "expected a recipe's report",
        "[]": "no samples",
        json.dumps([sample | {"after": None}]): "was not finished",
        json.dumps([sample, sample]): "repeated prompts",
    }.items():
        (tmp_path / "report.json").write_text(f'{{"samples": {samples}}}', encoding="utf-8")
        with pytest.raises(UserError, match=says):
            rating_items.from_report(str(tmp_path), 0)
    for words, says in [
        (["--output_dir", str(tmp_path / "no")], "holds no answers.json"),
        (["--answers", base], "takes two files"),
        (["--report", "x", "--answers", "y"], "give one of --answers, --report"),
        (["--models", base, base], "takes two models or adapters"),
        (["--models", "pocket", "pocket2", "--limit", "-1"], "--limit is 0 or more"),
    ]:
        code, _, err = rate(capsys, *words, "--summary")
        assert code == 2 and says in err


def test_which_answer_is_a_is_shuffled_by_item_and_rater():
    items = many(2000)
    firsts = {who: [items.first(item, who) for item in items.items] for who in ("ann", "bob")}
    for found in firsts.values():
        assert stats.binomtest(sum(found), len(found)).pvalue > 1e-3
    same = np.equal(*firsts.values()).sum()
    assert stats.binomtest(int(same), len(items.items)).pvalue > 1e-3
    again, other = many(2000), many(2000, seed=1)
    assert firsts["ann"] == [again.first(item, "ann") for item in items.items]  # the same after a restart
    assert firsts["ann"] != [other.first(item, "ann") for item in items.items]
    place = {item.key: place for place, item in enumerate(items.items)}
    places = [place[item.key] for item in items.order()]
    assert sorted(places) == list(range(2000)) and abs(stats.spearmanr(places, range(2000)).statistic) < 0.1


def test_a_vote_comes_back_as_it_was_seen(tmp_path):
    found = many()
    session = rating.RatingSession(found, Votes(tmp_path, write=True))
    for item in found.items:
        kept = session.vote(item.key, "ann", [1, 2, 3, 4], "A")
        side = found.first(item, "ann")
        assert kept.better == kept.first == ("base", "tuned")[side]
        assert kept.helpfulness[side] == 1 and kept.helpfulness[1 - side] == 2
        assert kept.safety[side] == 3 and kept.safety[1 - side] == 4
        assert session.last_vote(item.key, "ann") == ([1, 2, 3, 4], "A")
    assert session.next("ann") is None and session.rated("ann") == 20 and session.next("bob") == session.order[0]
    assert session.before("") == session.order[-1] and session.before(session.order[0].key) == session.order[0]
    assert {kept.first for kept in session.votes.latest.values()} == {"base", "tuned"}


def test_votes_are_on_the_disk_before_the_page_goes_on(tmp_path, monkeypatch):
    synced, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append((tmp_path / "votes.jsonl").read_bytes()), real(file)))
    votes = Votes(tmp_path, write=True)
    item = many().items[0]
    votes.add(vote(item))
    assert synced[-1].endswith(b"}\n") and json.loads(synced[-1])["better"] == "tuned"
    votes.add(vote(item, better="tie"))  # second thoughts
    votes.add(vote(item, rater="zoë"))
    again = Votes(tmp_path)
    assert again.latest == votes.latest and again.latest[item.key, "ann"].better == "tie" and len(again.latest) == 2
    assert len((tmp_path / "votes.jsonl").read_text().splitlines()) == 3 and not again.notes


@pytest.mark.parametrize("cut", [1, 30, 120, "newline"])
def test_a_torn_last_line_is_told_and_nothing_else_is_lost(tmp_path, cut):
    items = many().items
    votes = Votes(tmp_path, write=True)
    for item in items[:3]:
        votes.add(vote(item))
    votes.close()
    path = tmp_path / "votes.jsonl"
    data = path.read_bytes()
    last = data.splitlines(keepends=True)[-1]
    path.write_bytes(data[: -len(last)] + (last[:-1] if cut == "newline" else last[:cut]))
    seen = Votes(tmp_path)
    assert path.read_bytes() != data and len(seen.latest) == (3 if cut == "newline" else 2)
    votes = Votes(tmp_path, write=True)
    assert len(votes.notes) == (0 if cut == "newline" else 1)
    assert cut == "newline" or f"was torn after {cut} bytes and is cut off" in votes.notes[0]
    votes.add(vote(items[3]))
    votes.close()
    after = Votes(tmp_path)
    assert set(after.latest) == {*seen.latest, (items[3].key, "ann")} and not after.notes


def test_a_damaged_line_and_a_second_server(tmp_path):
    votes = Votes(tmp_path, write=True)
    votes.add(vote(many().items[0]))
    with pytest.raises(UserError, match="in use by another tunebook rate"):
        Votes(tmp_path, write=True)
    votes.close()
    path = tmp_path / "votes.jsonl"
    good = path.read_text()
    for line in ("nonsense", good.replace("[2, 4]", "[2, 6]"), good.replace('"tuned"', '"ours"'), good[:40], "{}"):
        path.write_text(good + line.strip() + "\n" + good)
        with pytest.raises(UserError, match="line 2 is no vote"):
            Votes(tmp_path, write=True)
        assert path.read_text().startswith(good)


def test_a_vote_that_cannot_be_written_is_not_kept(tmp_path, monkeypatch):
    votes = Votes(tmp_path, write=True)
    votes.add(vote(many().items[0]))
    before = (tmp_path / "votes.jsonl").read_bytes()
    real = os.write

    def full(file, data):
        if len(data) < 60:
            raise OSError(28, "No space left on device")
        return real(file, data[:50])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        for item in many().items[1:]:
            votes.add(vote(item))
    assert (tmp_path / "votes.jsonl").read_bytes() == before and len(votes.latest) == 1


def test_any_answer_is_shown_as_text():
    class Reader(HTMLParser):
        tags, text = [], ""

        def handle_starttag(self, tag, attrs):
            self.tags.append(tag)

        def handle_data(self, data):
            self.text += data

    for text in (*HOSTILE, "a &lt; b", "\ud800", "# title\n* point"):
        reader = Reader()
        reader.tags = []
        reader.feed(shown := rating.as_text(text, "T"))
        assert reader.tags == ["p", "div"] and reader.text == "T" + text.encode("utf-8", "backslashreplace").decode()
        assert not set("$`{}") & set(shown)
    assert "(nothing)" in rating.as_text("", "T")
    assert rating.name_of("  ann \n lee ") == "ann lee" and rating.name_of(" ") == ""


def test_the_summary_of_one_rater(tmp_path):
    found = many(40)
    votes = Votes(tmp_path, write=True)
    better = ["tuned"] * 18 + ["base"] * 6 + ["tie"] * 6
    chance = np.random.default_rng(0)
    scores = chance.integers(1, 6, size=(30, 4)).tolist()
    for item, choice, (a, b, c, d) in zip(found.items, better, scores, strict=False):
        votes.add(vote(item, better=choice, helpfulness=(a, b), safety=(c, d), first="tuned"))
    votes.add(Vote("of another", "ann", "tie", "base", (1, 1), (1, 1)))
    report = summary.summarize(found, votes)
    said = report["preference"]
    assert (report["rated"], report["votes"], report["of_other_answers"]) == (30, 30, 1)
    assert (said["won"], said["lost"], said["ties"]) == (18, 6, 6) and said["win_rate"] == pytest.approx(21 / 30)
    low, high = paired.score_interval(6, 18, 30)
    assert (said["low"], said["high"]) == ((1 + low) / 2, (1 + high) / 2) and low < 0.4 < high
    assert said["p"] == pytest.approx(stats.binomtest(6, 24).pvalue)
    assert said["shown_first"] == {"better": 18, "of": 24}
    table = np.array(scores, dtype=float)
    row = report["scores"]["helpfulness"]
    assert row["difference"] == pytest.approx((table[:, 1] - table[:, 0]).mean())
    test = stats.ttest_rel(table[:, 1], table[:, 0])
    assert (row["low"], row["high"]) == pytest.approx(tuple(test.confidence_interval()), abs=0.12)
    assert row["p"] == pytest.approx(test.pvalue, abs=0.05)
    assert report["agreement"] is None
    lines = "\n".join(summary.lines(report))
    assert "win rate 70.0 %" in lines and "1 votes are on other answers" in lines and "random sample" in lines


def test_several_raters_count_an_item_once(tmp_path):
    found = many(4)
    votes = Votes(tmp_path, write=True)
    for who, choices in {"ann": ["tuned", "tuned", "base"], "bob": ["tuned", "base", "base"], "cy": ["tie"]}.items():
        for item, choice in zip(found.items, choices, strict=False):
            votes.add(vote(item, rater=who, better=choice))
    report = summary.summarize(found, votes)
    said = report["preference"]
    assert (said["won"], said["lost"], said["ties"], report["rated"], report["votes"]) == (1, 1, 1, 3, 7)
    assert said["win_rate"] == 0.5 and report["raters"] == {"ann": 3, "bob": 3, "cy": 1}
    agreed = report["agreement"]
    assert (agreed["items"], agreed["pairs"], agreed["same"]) == (3, 5, 2)
    assert report["scores"]["safety"]["p"] is None  # the same on every item
    assert "alpha" in "\n".join(summary.lines(report)) and "undefined" in "\n".join(summary.lines(report))


def test_alpha_is_krippendorffs():
    # The example of his paper (four observers, twelve units): 0.743 for names, 0.849 for numbers.
    observers = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0], [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
        [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0], [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
    ]  # fmt: skip
    units = [[value for value in unit if value] for unit in zip(*observers, strict=True)]
    assert agreement.alpha(units) == pytest.approx(0.743, abs=5e-4)
    assert agreement.alpha(units, agreement.squared) == pytest.approx(0.849, abs=5e-4)
    chance = np.random.default_rng(1)
    table = chance.integers(3, size=(50, 4))
    kappa = inter_rater.fleiss_kappa(inter_rater.aggregate_raters(table)[0])  # of as many raters everywhere
    assert agreement.alpha(table.tolist()) == pytest.approx(kappa + (1 - kappa) / table.size)
    assert agreement.alpha([[1, 1], [1, 1]]) is None and agreement.alpha([[1], [2]]) is None


def test_a_page_without_gradio_names_the_command(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = rate(capsys, "--output_dir", str(tmp_path))
    assert code == 2 and 'pip install "gradio>=6,<7"' in err


def served(folder, port, *words):
    """A server of a process of its own, once it says where it is."""
    command = [sys.executable, "-c", "from tunebook.common import commands; commands.main()", "rate", *words]
    process = subprocess.Popen(
        [*command, "--output_dir", str(folder), "--port", str(port)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env=os.environ | {"GRADIO_ANALYTICS_ENABLED": "True"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs in the background ignore it
    )  # fmt: skip
    said = ""
    for line in process.stdout:
        said += line
        if "rating page:" in line:
            return process, said
    raise AssertionError(said)


@pytest.mark.recipe
def test_models_that_answer_first(tmp_path, capsys):
    file, out = tmp_path / "q.jsonl", tmp_path / "out"
    asked = [
        {"turns": ["Repeat these words: rain sun", "Again."]},
        {"instruction": "Tell if 4 is even.", "output": "x"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*asked, asked[1]]), encoding="utf-8")
    copied = tmp_path / "copied"
    shutil.copytree(ROOT / "common" / "pocket" / "model", copied)
    words = ["--models", "pocket", str(copied), "--prompts", str(file), "--output_dir", str(out), "--summary"]
    code, said, err = rate(capsys, *words, "--max_new_tokens", "8")
    assert code == 0, err
    assert "1 of 3 conversations have later turns" in said and "1 of 3 questions are left out" in said
    found = rating_items.load(out)
    assert [item.prompt for item in found.items] == ["Repeat these words: rain sun", "Tell if 4 is even."]
    assert all(item.answers[0] == item.answers[1] != "" for item in found.items)  # the same model twice
    assert found.names == ("pocket", str(copied))


@pytest.mark.slow
@browser.needed
@pytest.mark.recipe
def test_twenty_votes_in_a_browser_with_a_kill_between(tmp_path):
    pytest.importorskip("gradio")
    from playwright import sync_api

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    texts = [HOSTILE, *((f"base {place}", f"tuned {place}") for place in range(1, 20))]
    files = [rows(tmp_path / f"{name}.jsonl", [pair[side] for pair in texts]) for side, name in enumerate("xy")]
    folder, asked, said, given = tmp_path / "out", [], [], {}
    process, _ = served(folder, port, "--answers", *files)
    try:
        with sync_api.sync_playwright() as play:
            chromium = play.chromium.launch(executable_path=browser.CHROMIUM, args=["--no-sandbox"])
            page = chromium.new_page()
            page.on("request", lambda request: asked.append(request.url))
            page.on("console", lambda message: said.append(message.text))
            enter(page, port)
            for place in range(10):
                give(page, place, given)
            assert not said
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert len(kept(folder)) == 10
            with (folder / "votes.jsonl").open("ab") as file:
                file.write(b'{"item": "torn')
            process, line = served(folder, port)
            assert "10 votes so far" in line and "torn after 14 bytes" in line
            enter(page, port)
            assert "10 of 20 rated" in page.inner_text("[data-item]")
            last = page.get_attribute("[data-item]", "data-item")
            page.keyboard.press("Backspace")
            changed(page, last)
            page.wait_for_function("document.querySelectorAll('input[type=radio]:checked').length === 5")
            last = page.get_attribute("[data-item]", "data-item")
            page.keyboard.press("Enter")
            changed(page, last)
            for place in range(10, 20):
                give(page, place, given)
            assert "20 of 20 rated: all of them" in page.inner_text("[data-item]")
            assert page.evaluate("window.hit") is None
            chromium.close()
        assert not [url for url in asked if not url.startswith((f"http://127.0.0.1:{port}/", "data:", "blob:"))]
        assert_blind_and_local(port, files)
        process.send_signal(signal.SIGINT)
        assert "20 of 20 items rated, 20 votes: ann 20" in process.communicate(timeout=30)[0]
    finally:
        process.kill()
    votes = kept(folder)
    assert {key: vote["better"] for (key, _), vote in votes.items()} == given


def enter(page, port):
    page.goto(f"http://127.0.0.1:{port}")
    page.wait_for_selector("#name input, #name textarea")
    page.fill("#name input, #name textarea", "ann")
    page.keyboard.press("Enter")
    page.wait_for_selector("[data-item]")


def changed(page, key):
    page.wait_for_function("key => (document.querySelector('[data-item]')?.dataset.item ?? key) !== key", arg=key)


def give(page, place, given):
    """One vote by keys; what it must come out as goes into `given`."""
    key = page.get_attribute("[data-item]", "data-item")
    assert key not in given
    first = page.inner_text(".text >> nth=1")
    sides = ["base", "tuned"] if first.startswith(("base", "<script>")) else ["tuned", "base"]
    for letter in "4352" + "abt"[place % 3]:
        page.keyboard.press(letter)
    page.keyboard.press("Enter")
    changed(page, key)
    given[key] = [*sides, "tie"][place % 3]


def kept(folder):
    lines = (folder / "votes.jsonl").read_text(encoding="utf-8").splitlines()
    return {(vote["item"], vote["rater"]): vote for vote in map(json.loads, lines)}


def assert_blind_and_local(port, files):
    """Nothing that the page is sent names a side, and another host's name gets nothing."""
    for path in ("/", "/config"):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
            text = answer.read().decode()
            assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert not [name for name in (*files, "tuned", '"base"') if name in text]
    request = urllib.request.Request(f"http://127.0.0.1:{port}/config", headers={"Host": "elsewhere.example"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request)
    with socket.socket() as other, pytest.raises(OSError):  # every address but 127.0.0.1 is closed
        other.connect((outward(), port))


def outward():
    """An address of this machine that others could reach, or another of its own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.2"
