"""Files whole or not at all, pages, formats and plots."""

import json
import re
import stat
from pathlib import Path

import numpy
import pytest

from tunebook.common import files, format, pages
from tunebook.common.errors import UserError
from tunebook.common.report import plots


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")

    def pieces():
        yield "new"
        raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        files.write_atomic(path, pieces())
    assert path.read_text() == "old" and [one.name for one in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(RuntimeError), files.atomic(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [one.name for one in tmp_path.iterdir()] == ["a.json"]


def test_the_mode_of_a_file_and_a_link_stay(tmp_path):
    path, link = tmp_path / "a.txt", tmp_path / "link.txt"
    path.write_text("old")
    path.chmod(0o600)
    files.write_atomic(path, "new")
    assert path.read_text() == "new" and stat.S_IMODE(path.stat().st_mode) == 0o600
    link.symlink_to(path)
    files.write_atomic(link, ["newer\n", b"still\n"])
    assert link.is_symlink() and path.read_text() == "newer\nstill\n"


def test_a_full_disk_and_a_folder_that_is_not_there_are_plain_messages(tmp_path):
    with pytest.raises(UserError, match="/dev/full cannot be written: No space left on device"):
        files.write_atomic(Path("/dev/full"), "x" * 10_000)
    with pytest.raises(UserError, match=r"a\.json cannot be written: No such file or directory"):
        files.write_json(tmp_path / "no" / "a.json", {})
    with pytest.raises(UserError, match=r"cannot be written: Is a directory\. Move it away"):
        files.write_json(tmp_path, {})


def test_json_and_half_a_surrogate_pair(tmp_path):
    files.write_json(tmp_path / "a.json", {"é": "\ud800"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n "é": "\\ud800"\n}\n'
    with pytest.raises(ValueError, match="Out of range float"):
        files.write_json(tmp_path / "b.json", float("nan"), allow_nan=False)
    assert not (tmp_path / "b.json").exists()


def test_a_row_that_is_not_quite_text_is_written():
    assert json.loads(files.json_line({"a": "\ud800"})) == {"a": "\ud800"}
    assert files.json_line({"a": "é"}) == '{"a": "é"}\n'.encode()


def test_a_page_extends_the_common_one_and_escapes(tmp_path):
    (tmp_path / "own.html.jinja").write_text(
        '{% extends "page.html.jinja" %}{% from "macros.html.jinja" import table %}'
        "{% block title %}{{ name }}{% endblock %}"
        '{% block body %}{{ table(["", "n"], [[name, 0.5|percent]]) }}{% endblock %}'
    )
    page = pages.render(tmp_path / "own.html.jinja", name="<b>")
    assert page.startswith("<!doctype html>") and "<title>&lt;b&gt;</title>" in page
    assert '<td>&lt;b&gt;</td><td class="n" data-head="n">50.0 %</td>' in page and "<b>" not in page
    assert "light-dark(" in page and 'name="viewport"' in page and 'id="bokeh"' not in page


@pytest.mark.parametrize(
    ("form", "values"),
    [
        (format.number, {12345: "12,345", 0.04217: "0.042", 0.00004: "4.00e-05", 0.0: "0.000", 1234.5: "1,234.500"}),
        (format.byte_size, {900: "900 B", 12800: "12.5 KiB", 1000 * 2**20: "1000 MiB", 24 * 2**30: "24 GiB"}),
        (format.duration, {3.21: "3.2 s", 35: "35 s", 59.6: "1 min 0 s", 845: "14 min 5 s", 7500: "2 h 5 min"}),
        (format.percent, {0.5432: "54.3 %", 0.00079: "0.079 %", 0.00002: "<0.01 %", 0: "0.0 %", 1: "100.0 %"}),
        (format.points, {0.0123: "+1.2", -0.5: "-50.0"}),
        (format.p_value, {0.0123: "0.012", 0.00001: "< 0.0001", 1.0: "1"}),
    ],
)
def test_formats(form, values):
    assert {value: form(value) for value in values} == values and form(None) == format.DASH


def test_intervals_and_tables():
    assert format.interval(0.451, 0.552) == "45.1 to 55.2" and format.interval(None, None) == format.DASH
    assert format.interval(-1.5, 2, "+.2f", 1) == "-1.50 to +2.00"
    rows = [["a|b", "1,000"], ["c", "2"]]
    assert format.table(["name", "n"], rows) == "name        n\na|b     1,000\nc           2"
    assert format.table([], []) == ""
    lines = format.markdown_table(["name", "n"], rows).splitlines()
    assert re.sub(" +", " ", lines[2]) == "| a\\|b | 1,000 |" and len(lines) == 4


def test_what_cannot_be_seen_is_written_out():
    assert format.visible(" a\n\t") == "·a⏎⇥"
    assert format.visible("\x1b[31m\u202e\u00a0é中") == "\\x1b[31m\\u202e\\xa0é中"


def test_plots_fetch_nothing_have_the_colours_of_the_page_and_say_names_as_text():
    wild = '<script>"x"</script>'
    drawn = [
        plots.curves({wild: [[0, 2.0], [5, 1.0]], "empty": []}, y="loss"),
        plots.scatter({wild: (10, 0.5), "other": (1000, 0.7)}, "x", "y", log=True),
        plots.bars({"step": 10, "counts": [3, 1], "beyond": 1}, wild),
        plots.bars({"step": 1, "counts": [], "beyond": 0}, "none"),
    ]
    for svg in drawn:
        assert svg.startswith('<svg role="img" aria-label="') and svg.rstrip().endswith("</svg>")
        assert "currentColor" in svg and "<script" not in svg and not re.search(r"url\(|http|#123456|#000000", svg)
    assert "By step: &lt;script&gt;" in drawn[0] and "empty" not in drawn[0] and plots.curves({"a": []}) == ""
    assert "last bar: 10 and more" in drawn[2]
    assert drawn[0] == plots.curves({wild: [[0, 2.0], [5, 1.0]], "empty": []}, y="loss")


def test_weights_can_be_read_by_a_server_of_another_user(tmp_path):
    from safetensors.numpy import save_file

    (tmp_path / "adapter").mkdir()
    file, other = tmp_path / "adapter" / "a.safetensors", tmp_path / "key.txt"
    save_file({"a": numpy.zeros(2)}, file)
    other.write_text("secret")
    other.chmod(0o600)
    (tmp_path / "plain").touch()
    files.share_weights(tmp_path)
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode and other.stat().st_mode & 0o777 == 0o600
    files.share_weights(tmp_path / "nowhere")
