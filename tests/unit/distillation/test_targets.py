"""A teacher's file holds what the teacher says, whatever the order or packing of rows, and nothing else fits it."""

import numpy
import pytest
import torch
from students import Stub, bins, model, padded, rows

from tunebook.common import distillation
from tunebook.common.distillation import student, teacher_cache, teacher_cache_writer
from tunebook.common.distillation.losses import DistillationLoss
from tunebook.common.errors import UserError
from tunebook.common.models import lm_head
from tunebook.common.tokens.lengths import IGNORE_INDEX

METADATA = {"tokenizer": "t", "template": "a", "teacher": "x", "temperature": "2", "vocabulary": "60", "k": "5"}


def cache(folder, part, k=5, size=64):
    teacher = distillation.Teacher(model(seed=3, hidden_size=48, vocab_size=size), "teacher")
    path = folder / f"{k}.safetensors"
    teacher_cache_writer.make(path, part, teacher, METADATA | {"k": str(k)}, batch_size=4)
    return teacher, teacher_cache.TeacherCache(path)


def test_the_file_is_safetensors_and_holds_what_the_teacher_says(tmp_path):
    from safetensors.numpy import load_file

    part = rows()
    teacher, _ = cache(tmp_path, part)
    found = load_file(tmp_path / "5.safetensors")
    assert {name: value.dtype.name for name, value in found.items()} == {
        "rows": "uint8", "starts": "int64", "ids": "uint16", "log_probs": "float16", "log_rest": "float16",
    }  # fmt: skip
    for number, row in enumerate(part):
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        expected = (teacher.model(input_ids=ids).logits[0, :-1, :60][labels[1:] != IGNORE_INDEX] / 2).log_softmax(-1)
        here = slice(*found["starts"][number : number + 2])
        top = expected.topk(5)
        assert numpy.array_equal(found["ids"][here], top.indices.numpy())
        assert numpy.abs(found["log_probs"][here] - top.values.numpy()).max() < 4e-3  # half precision
        rest = 1 - top.values.exp().sum(-1)
        assert numpy.abs(numpy.exp(found["log_rest"][here].astype(float)) - rest.numpy()).max() < 4e-3


@pytest.mark.parametrize("collate", [padded, bins])
def test_nearly_all_tokens_are_the_online_teacher_and_packing_finds_them(tmp_path, collate):
    part = rows()
    teacher, found = cache(tmp_path, part, k=59)
    part = part[::-1][:3] + part[:3]  # another order
    grouped = part if collate is padded else [join(part[:3]), join(part[3:])]
    batch = teacher_cache.TargetCollator(lambda _: collate(part), found)(grouped)
    student = model(seed=2)
    distillation.prepare(student, "student")
    online, cached = (
        distillation.loss(Stub(), student, batch, None, who, DistillationLoss()) for who in (teacher, found)
    )
    assert cached.item() == pytest.approx(online.item(), rel=2e-3)
    gradients = [torch.autograd.grad(value, [student.lm_head.weight])[0] for value in (online, cached)]
    assert (gradients[0] - gradients[1]).norm() < 5e-3 * gradients[0].norm()


def test_a_teachers_own_loss_is_its_cross_entropy_over_tokens(tmp_path, monkeypatch, capsys):
    part, other = rows(), rows(9)[6:]
    teacher, _ = cache(tmp_path, part)
    total = count = 0
    for row in part:
        logits = teacher.model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].double()
        labels = torch.tensor(row["labels"])[1:]
        total += torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum").item()
        count += int((labels != IGNORE_INDEX).sum())
    for some in (part, [join(part[:3]), join(part[3:])]):  # packed or not
        assert teacher_cache_writer.held_out_loss(teacher, some, batch_size=4) == pytest.approx(total / count, rel=1e-5)
    assert teacher_cache_writer.held_out_loss(teacher, []) is None

    # Where the teacher's file is read again, the loss is known of the rows that were held out when it was made.
    described, loaded = {**METADATA, "k": "5"}, []
    monkeypatch.setattr(teacher_cache, "metadata_for", lambda *_: dict(described))
    monkeypatch.setattr(student, "load_teacher", lambda *_: loaded.append(1) or teacher)
    words = (None, None, "big", 2.0, 5, 16)
    for _ in range(2):
        found = teacher_cache_writer.open_or_make(tmp_path / "made", other, *words, held_out=part)
        assert teacher_cache_writer.held_out_loss(found, [join(part[3:]), join(part[:3])]) == pytest.approx(
            total / count, rel=1e-5
        )
    assert loaded == [1] and teacher_cache_writer.held_out_loss(found, part[1:]) is None

    account = teacher_cache_writer.add_to_scores({"before": {}}, found, part, DistillationLoss(0.25, 2.0))[
        "distillation"
    ]
    assert account["teacher"] == "big" and account["held_out_loss"] == pytest.approx(total / count, rel=1e-5)
    assert account["loss"] == "0.25·T²·KL(teacher‖student) + 0.75·cross-entropy, T = 2"
    assert f"teacher big: held-out loss {total / count:.4f}" in capsys.readouterr().out
    assert DistillationLoss(1.0, 1.0, 1.0).words()["loss"] == "T²·KL(student‖teacher), T = 1"


def join(part):
    row = {name: [v for r in part for v in r[name]] for name in ("input_ids", "labels")}
    return row | {"seq_lengths": [len(r["input_ids"]) for r in part]}


def test_what_does_not_fit_is_refused(tmp_path):
    part = rows()
    _, found = cache(tmp_path, part)
    found.fits(METADATA, part[2:4])
    found.fits(METADATA, [join(part)])
    for name in METADATA:
        with pytest.raises(UserError, match=f"was made with another {name} "):
            found.fits(METADATA | {name: "other"}, part)
    other = {**part[2], "labels": [IGNORE_INDEX, *part[2]["labels"][1:-1], IGNORE_INDEX]}
    with pytest.raises(UserError, match="row 3 is not in it"):
        found.fits(METADATA, [*part[:2], other])
    teacher = distillation.Teacher(model(), "teacher")
    with pytest.raises(UserError, match="--top_k 60: it is from 1 to 59"):
        teacher_cache_writer.make(tmp_path / "no", part, teacher, METADATA | {"k": "60"})
    assert not (tmp_path / "no").exists()


def test_a_stop_while_the_teacher_reads_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_cache_writer, "_top", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cache(tmp_path, rows())
    assert not list(tmp_path.iterdir())


def test_fingerprints_know_a_teacher_by_its_files(tmp_path):
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        model(seed=seed).save_pretrained(tmp_path / name)
    one, same, other = (teacher_cache.fingerprint(str(tmp_path / name)) for name in ("one", "same", "other"))
    assert one == same != other
    assert teacher_cache.fingerprint("nobody/nothing") == "nobody/nothing, not on this machine"


def test_the_head_of_half_precision_is_wide():
    head = lm_head.LMHead(torch.randn(8, 4, dtype=torch.bfloat16))
    assert head.logits(torch.randn(2, 4, dtype=torch.bfloat16)).dtype == torch.float32


def test_a_damaged_file_is_not_read(tmp_path):
    path = tmp_path / "targets.safetensors"
    path.write_bytes(bytes(100))
    teacher_cache.require_whole(path)  # of an earlier version
    teacher_cache.seal(path)
    teacher_cache.require_whole(path)
    path.write_bytes(bytes(99) + b"\1")
    with pytest.raises(UserError, match="is damaged: it is not what was written"):
        teacher_cache.require_whole(path)
