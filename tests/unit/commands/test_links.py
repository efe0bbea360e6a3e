"""Links inside an output folder: what they lead to is never written, and the message says so."""

import pytest

from tunebook.common.errors import UserError
from tunebook.common.run_folder import output_dir


@pytest.mark.parametrize(
    "name", ["adapter", "checkpoint-3", "tokens", "run.json", "log.jsonl", "run.lock", "report.html"]
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_link_is_refused(name, overwrite, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "keep.txt").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match=f"{name} in it is a link to .*precious"):
        output_dir.prepare_run(str(tmp_path / "run"), overwrite)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [name]


def test_the_folder_itself_may_be_one(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "notes.txt").symlink_to(tmp_path / "else")  # not a run's
    assert output_dir.prepare_run(str(tmp_path / "run"), False)[0] == tmp_path / "run"
    from tunebook.common.run_folder import lock

    lock.release()
