"""Files as streams of raw values: every format, cut anywhere, faults with their place."""

import csv
import gzip
import json
import random

import pytest

from tunebook.common.data import json_array, readers
from tunebook.common.errors import UserError

VALUES = [
    {"instruction": "Name a bird.", "output": "wren", "n": 1},
    {"instruction": 'Say "hi", then\nstop \\ here.', "output": "ça va, 你好, \U0001f600", "n": -2.5e3},
    {"instruction": "", "output": "[1, 2]", "deep": {"a": [[], {}, [None, True]]}},
]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def values(path, **options):
    return [value for _, value in readers.read(path, **options)]


def fault(path):
    with pytest.raises(UserError) as error:
        values(path)
    return str(error.value)


@pytest.mark.parametrize("indent", [None, 0, 3])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_json_lists_cut_anywhere(tmp_path, monkeypatch, indent, ascii_only):
    text = "\ufeff \n" + json.dumps(VALUES * 3, indent=indent, ensure_ascii=ascii_only) + "\n\n"
    path = write(tmp_path / "a.json", text)
    for chunk in (1, 2, 3, 7, 64, 1 << 20):
        monkeypatch.setattr(json_array, "CHUNK", chunk)
        assert values(path) == VALUES * 3


def test_numbers_and_scalars_cut_anywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(json_array, "CHUNK", 1)
    assert values(write(tmp_path / "a.json", '[12345, -1.5e-7, true,null,"x", []]')) == [
        12345,
        -1.5e-7,
        True,
        None,
        "x",
        [],
    ]
    assert values(write(tmp_path / "b.json", " [ ] ")) == []


def test_json_against_the_json_module_on_random_damage(tmp_path):
    """Whatever one byte is changed to, both accept or both refuse, and what is accepted is the same."""
    generator = random.Random(5)
    good = json.dumps(VALUES, ensure_ascii=False).encode()
    for _ in range(800):
        damaged = bytearray(good)
        place = generator.randrange(len(good))
        damaged[place] = generator.choice(b'[]{},:"\\0a \n\xff')
        path = write(tmp_path / "a.json", bytes(damaged))
        try:
            wanted = json.loads(bytes(damaged).decode())
            wanted = wanted if isinstance(wanted, list) else None
        except ValueError:
            wanted = None
        try:
            found = values(path)
        except UserError as error:
            found = None if "twice" not in str(error) else wanted
        assert found == wanted, bytes(damaged)


def test_gz_and_lines(tmp_path):
    lines = "\r\n\n".join(json.dumps(value) for value in VALUES) + "  "
    assert values(write(tmp_path / "a.jsonl", "\ufeff" + lines)) == VALUES
    assert values(write(tmp_path / "a.jsonl.gz", gzip.compress(lines.encode()))) == VALUES
    assert values(write(tmp_path / "A.JSON.gz", gzip.compress(json.dumps(VALUES).encode()))) == VALUES


def test_tables(tmp_path):
    text = 'instruction,output\n"Say ""hi"",\nnow.",hi\n\nName a tree.,\n'
    wanted = [{"instruction": 'Say "hi",\nnow.', "output": "hi"}, {"instruction": "Name a tree.", "output": ""}]
    assert values(write(tmp_path / "a.csv", "\ufeff" + text)) == wanted
    assert values(write(tmp_path / "a.csv.gz", gzip.compress(text.encode()))) == wanted
    assert values(write(tmp_path / "a.tsv", "q\ta\none, two?\tyes\n")) == [{"q": "one, two?", "a": "yes"}]
    assert values(write(tmp_path / "b.tsv", "one?\tyes\ntwo?\tno\n"), header=False) == [
        {"1": "one?", "2": "yes"},
        {"1": "two?", "2": "no"},
    ]


def test_parquet(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [{"prompt": f"p{n}", "messages": [{"role": "user", "content": "x"}] * (n % 3)} for n in range(2500)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=700)
    assert values(tmp_path / "a.parquet") == rows


def test_a_source_is_read_again_and_counts_from_one(tmp_path):
    source = readers.read(write(tmp_path / "a.jsonl", '{"a": 1}\n\n{"a": 2}\n'))
    assert list(source) == list(source) == [(1, {"a": 1}), (2, {"a": 2})]


def test_all_broken_lines_in_one_message(tmp_path):
    text = "\n".join('{"a": ' if n % 3 == 0 else '{"a": 1}' for n in range(1, 61))
    says = fault(write(tmp_path / "a.jsonl", text))
    assert "line 3:" in says and "line 30:" in says and "line 33:" not in says and "and 10 more" in says


def test_places_of_faults(tmp_path, monkeypatch):
    for chunk in (5, 1 << 20):
        monkeypatch.setattr(json_array, "CHUNK", chunk)
        assert "line 3, column 7, in row 2" in fault(write(tmp_path / "a.json", '[{"a": 1},\n{"a":\n {"b" 2}}]'))
        assert "line 2, column 6, after row 1" in fault(write(tmp_path / "b.json", '[\n {}  {"a": 1}]'))
        assert "byte 21 is 0xe9" in fault(write(tmp_path / "c.json", b'[{"instruction": "caf\xe9"}]'))
        assert "the middle of the list, after row 2 (line 2" in fault(
            write(tmp_path / "d.json", '[{"a": 1},\n{"a": 2}')
        )
        assert "row 2: duplicate key 'a'" in fault(write(tmp_path / "e.json", '[{}, {"a": 1, "a": 2}, {}]'))


def test_a_key_twice_does_not_hide_what_follows(tmp_path):
    says = fault(write(tmp_path / "a.json", '[{"a": 1, "a": 2}, {"b": {"c": 1, "c": 1}}, {}]'))
    assert "row 1" in says and "row 2" in says


def test_rows_too_long_for_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(json_array, "CHUNK", 10)
    monkeypatch.setattr(json_array, "LONGEST", 100)
    monkeypatch.setattr(readers, "LONGEST", 100)
    long = json.dumps({"a": "x" * 300})
    assert "row 1" in fault(write(tmp_path / "a.json", f"[{long}]"))
    assert "line 2 is longer" in fault(write(tmp_path / "a.jsonl", f"{{}}\n{long}"))
    assert "quote" in fault(write(tmp_path / "a.csv", 'a,b\n1,"' + "x, y\n" * 60))
    csv.field_size_limit(64 << 20)  # it is the process's: other tests read csv, too


def test_folder_names_file_and_row(tmp_path):
    write(tmp_path / "b.jsonl", '{"a": 3}\n{"a"\n')
    write(tmp_path / "a.jsonl", '{"a": 1}\n{"a": 2}\n')
    write(tmp_path / ".hidden.jsonl", "{")
    assert "b.jsonl: line 2" in fault(tmp_path)
    write(tmp_path / "b.jsonl", '{"a": 3}\n')
    source = readers.read(tmp_path)
    assert list(source) == [(1, {"a": 1}), (2, {"a": 2}), (3, {"a": 3})]
    assert [source.place(number) for number in (1, 2, 3)] == ["a.jsonl, row 1", "a.jsonl, row 2", "b.jsonl, row 1"]


def test_sides_by_name(tmp_path):
    for name in ("train-00000-of-00001.parquet", "valid.csv", "test_01.jsonl", "trainer_notes.json", "testament.jsonl"):
        write(tmp_path / name, "")
    found, others = readers.splits(tmp_path)
    assert {side: source.path.name for side, source in found.items()} == {
        "train": "train-00000-of-00001.parquet",
        "validation": "valid.csv",
        "test": "test_01.jsonl",
    }
    assert others == ["testament.jsonl", "trainer_notes.json"]


def test_what_is_no_source(tmp_path):
    write(tmp_path / "a.txt", "x")
    (tmp_path / "empty").mkdir()
    for path, says in ((tmp_path / "a.txt", "expected a .json"), (tmp_path / "b.json", "no such file"),
                       (tmp_path / "empty", "holds no")):  # fmt: skip
        with pytest.raises(UserError, match=says):
            readers.read(path)


def test_memory_does_not_grow_with_rows(tmp_path):
    import tracemalloc

    row = json.dumps({"instruction": "x" * 400, "output": "y" * 400})
    for name, text in (("a.jsonl", f"{row}\n" * 20_000), ("a.json", "[" + ",\n".join([row] * 20_000) + "]")):
        source = readers.read(write(tmp_path / name, text))
        tracemalloc.start()
        assert sum(1 for _ in source) == 20_000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8e6, name  # the file is 17 MB


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_of_save_to_disk_is_what_datasets_reads(tmp_path, shards):
    import datasets

    rows = [{"instruction": f"a{n}", "output": "b", "n": None if n % 2 else n} for n in range(2500)]
    made = datasets.Dataset.from_list(rows)
    made.save_to_disk(str(tmp_path / "one"), num_shards=shards)
    made.select([4, 2]).save_to_disk(str(tmp_path / "picked"))  # the indices are applied as it is written
    write(tmp_path / "one" / "cache-1234.arrow", "left by a map")
    for name in ("one", "picked"):
        assert values(tmp_path / name) == list(datasets.load_from_disk(str(tmp_path / name)))
    assert readers.passed_over(tmp_path / "one") == ["dataset_info.json", "state.json"]
    datasets.DatasetDict({"train": made, "test": made.select([7])}).save_to_disk(str(tmp_path / "sides"))
    found, others = readers.splits(tmp_path / "sides")
    assert {side: [value for _, value in source] for side, source in found.items()} == {
        "train": rows,
        "test": [rows[7]],
    }
    assert others == []


def test_arrow_files_of_both_formats_and_damaged_ones(tmp_path):
    import pyarrow

    table = pyarrow.Table.from_pylist([{"a": n} for n in range(2500)])
    for name, writer in (("file.arrow", pyarrow.ipc.new_file), ("stream.arrow", pyarrow.ipc.new_stream)):
        with writer(str(tmp_path / name), table.schema) as out:
            out.write_table(table)
        assert values(tmp_path / name) == table.to_pylist()
        damaged = write(tmp_path / f"cut_{name}", (tmp_path / name).read_bytes()[:900])
        assert any(says in fault(damaged) for says in ("not a sound arrow file", "cannot be read to its end"))


def test_a_clone_of_the_hub_gives_its_data(tmp_path):
    for name in ("data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl", ".git/x.json", ".cache/y.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, '{"a": 1}\n')
    write(tmp_path / "dataset_infos.json", "{}")
    write(tmp_path / "README.md", "words")
    found, others = readers.splits(tmp_path)
    assert list(found) == ["test", "train"] and others == []
    assert readers.passed_over(tmp_path) == ["dataset_infos.json"]
    write(tmp_path / "rows.jsonl", '{"a": 2}\n')
    assert values(tmp_path) == [{"a": 2}]
    deeper = ["data/test-00000-of-00001.jsonl", "data/train-00000-of-00001.jsonl"]
    assert readers.passed_over(tmp_path) == ["dataset_infos.json", *deeper]


def test_a_header_with_spaces(tmp_path):
    assert values(write(tmp_path / "a.csv", 'instruction, output\na, "b, c"\nd,e\n')) == [
        {"instruction": "a", "output": "b, c"},
        {"instruction": "d", "output": "e"},
    ]
    assert "line 3: 1 cells" in fault(write(tmp_path / "b.csv", "a, b\n1, 2\n3\n"))
    assert values(write(tmp_path / "c.csv", "a,b\n1, 2\n")) == [{"a": "1", "b": " 2"}]


ROW = '{"instruction": "a", "output": "b"}'
PRETTY = json.dumps(json.loads(ROW), indent=1)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "a.json",
            '{"instruction": {"0": "a", "1": "b"}, "output": {"0": "c", "1": "d"}}',
            'orient="records", lines=True',
        ),
        ("a.json", '{"instruction": ["a", "b"], "output": ["c", "d"]}', "pandas.read_json(FILE, dtype=False"),
        ("a.json", '{"columns": ["a"], "index": [0], "data": [["x"]]}', 'pandas.read_json(FILE, orient="split"'),
        ("a.json", '{"version": 1, "data": [{"a": 1}]}', "jq '.[\"data\"]' FILE"),
        ("a.json", '{"messages": [{"role": "user", "content": "x"}]}', "put [ and ] around a single row"),
        ("a.json", ROW + ROW, "jq -c . FILE"),
        ("a.json", f"{ROW}\n{ROW}", "one object a line is .jsonl: rename"),
        ("a.json", f"{PRETTY}\n{PRETTY}", "jq -c . FILE"),
        ("a.json", f"{ROW},\n{ROW}", "begins with [ and ends with ]"),
        ("a.json", f"[{ROW}]\n[{ROW}]", "jq -s add FILE"),
        ("a.json", f"[{ROW},\n\ufeff{ROW}]", "line 2, column 1, in row 2: a byte order mark"),
        ("a.json", f"[{ROW}\0]", "after row 1: a NUL byte"),
        ("a.jsonl", f"{PRETTY}\n{PRETTY}", "line 1: an object that goes over several lines"),
        ("a.jsonl", ROW + ROW, "a second object follows the first"),
        ("a.jsonl", f"{ROW}\n\ufeff{ROW}", "line 2: begins with a byte order mark"),
        ("a.jsonl", f"{ROW}\n{ROW}\0\n", "line 2: byte 35 of the line is NUL"),
        ("a.csv", "a,b\n1,2\n\ufeffa,b\n", "line 3: begins with a byte order mark"),
        ("a.csv", "a,b\n1,\0\n", "line 2: byte 2 of the line is NUL"),
        ("a.jsonl", (ROW + "\n").encode("utf-16-le"), "UTF-16"),
        ("a.xlsx", "PK", "save a sheet as .csv"),
    ],
)
def test_files_in_other_forms_say_how_they_become_rows(tmp_path, name, text, says):
    assert says in fault(write(tmp_path / name, text))


def test_an_object_larger_than_what_is_read_at_once_is_known_too(tmp_path, monkeypatch):
    monkeypatch.setattr(json_array, "CHUNK", 16)
    assert "its rows are in `data`" in fault(
        write(tmp_path / "a.json", json.dumps({"n": 1, "data": [{"a": "x" * 999}]}))
    )


def test_what_pandas_writes_becomes_rows_by_the_command_that_is_named(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"instruction": ["1", "b"], "output": ["01", "2020-01-01"]})
    for orient in ("columns", "split"):
        frame.to_json(tmp_path / "a.json", orient=orient)
        command = fault(tmp_path / "a.json").split("`")[1]
        command = command.replace("FILE", repr(str(tmp_path / "a.json"))).replace("NEW", str(tmp_path / "new"))
        eval(command, {"pandas": pandas})
        assert values(tmp_path / "new.jsonl") == frame.to_dict("records")
