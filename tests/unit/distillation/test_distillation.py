"""A student's step: right for every architecture's head, however rows are split or packed, and for every tokenizer."""

import copy
import json
import os

import few
import forked
import pytest
import torch
from paths import ROOT
from reference_loss import reference_loss
from students import OWN, Stub, bins, model, padded, rows

from tunebook.common import distillation
from tunebook.common.distillation import student, vocabulary
from tunebook.common.distillation.losses import DistillationLoss
from tunebook.common.errors import UserError
from tunebook.common.models import lm_head
from tunebook.common.tokens.lengths import IGNORE_INDEX


@pytest.mark.parametrize("name", OWN)
def test_the_head_makes_the_models_own_logits(name):
    made, ids = model(name), torch.arange(10, 30).view(2, 10)
    expected = made.eval()(input_ids=ids).logits
    lm_head.expose_hidden_states(made)
    lm_head.check(made, name)
    found = lm_head.of(made).logits(made(input_ids=ids, head=False))
    assert torch.allclose(found, expected, atol=1e-5 * expected.abs().max().item())
    assert torch.equal(made(input_ids=ids).logits, expected)


def test_a_head_that_is_not_understood_is_refused():
    made = model("Cohere")
    lm_head.expose_hidden_states(made)
    made.config.logit_scale = 0.5  # what the head is read from, not what the model computes with
    with pytest.raises(UserError, match="--model odd: CohereForCausalLM makes its logits in a way that is not known"):
        lm_head.check(made, "odd")


def gradient(batches, blend):
    """The gradient of a step of these batches, and its loss."""
    student, other = model(seed=2), model(seed=3, hidden_size=48, vocab_size=64)
    distillation.prepare(student, "student")
    teacher = distillation.Teacher(other, "teacher")
    items = sum(int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        loss = distillation.loss(Stub(), student, batch, items, teacher, blend)
        loss.backward()
        total += loss.item()
    return total, torch.cat([weight.grad.flatten() for weight in student.parameters()])


@pytest.mark.parametrize(
    "blend", [DistillationLoss(0.5, 2.0, 0.0), DistillationLoss(1.0, 1.0, 0.5), DistillationLoss(0.0)], ids=str
)
def test_splits_and_packing_change_nothing(blend):
    part = rows()
    loss, whole = gradient([padded(part)], blend)
    splits = [padded(part[:1]), padded(part[1:4]), padded(part[4:])]
    for batches in (splits, [bins(part)], [bins(part[:3]), bins(part[3:])]):
        other, found = gradient(batches, blend)
        assert other == pytest.approx(loss, rel=1e-5)
        assert (found - whole).norm() <= 1e-5 * whole.norm()


def test_rows_that_see_each_other_would_be_seen():
    """The same bins with a mask of ones, under which documents see each other."""
    part = rows()
    wrong = bins(part)
    wrong["attention_mask"] = torch.ones_like(wrong["input_ids"])
    loss, _ = gradient([padded(part)], DistillationLoss())
    assert abs(gradient([wrong], DistillationLoss())[0] - loss) > 1e-3 * loss


def test_the_teacher_gets_no_gradient_and_an_evaluation_is_the_cross_entropy():
    student, other, batch = model(seed=2), model(seed=3), padded(rows())
    distillation.prepare(student, "student")
    teacher = distillation.Teacher(other, "teacher")
    distillation.loss(Stub(), student, batch, None, teacher, DistillationLoss()).backward()
    assert all(weight.grad is None for weight in other.parameters())
    student.eval()
    expected = student(**batch).loss.item()
    with torch.no_grad():
        assert distillation.loss(Stub(), student, batch, None, teacher, DistillationLoss()).item() == pytest.approx(
            expected
        )


def test_what_would_be_ignored_is_refused():
    from peft import LoraConfig, get_peft_model

    student = model(seed=2)
    distillation.prepare(student, "student")
    trainer, teacher = Stub(), distillation.Teacher(model(seed=3), "teacher")
    trainer.args.label_smoothing_factor = 0.1
    try:
        with pytest.raises(UserError, match="label_smoothing_factor"):
            distillation.loss(trainer, student, padded(rows()), None, teacher, DistillationLoss())
    finally:
        trainer.args.label_smoothing_factor = 0.0
    student.config.output_router_logits = True
    with pytest.raises(UserError, match="router"):
        distillation.loss(trainer, student, padded(rows()), None, teacher, DistillationLoss())
    on_head = get_peft_model(model(), LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    with pytest.raises(UserError, match="leave lm_head out"):
        distillation.prepare(on_head, "student")


def test_lora_gets_the_gradient_of_the_formula():
    """Through PEFT's wrapper, against reference_loss on the wrapper's own logits."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    student = get_peft_model(model(seed=2), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    teacher, batch = distillation.Teacher(model(seed=3), "teacher"), padded(rows())
    distillation.prepare(student, "student")
    found = distillation.loss(Stub(), student, batch, None, teacher, DistillationLoss())
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        said = teacher.model(**inputs).logits
    items = (batch["labels"][:, 1:] != IGNORE_INDEX).sum()
    expected = reference_loss(student(**inputs).logits, said, batch["labels"], DistillationLoss(), items)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    weights = [weight for weight in student.parameters() if weight.requires_grad]
    for one, two in zip(torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights), strict=True):
        assert (one - two).norm() <= 1e-4 * max(two.norm().item(), 1e-3)


def test_a_memory_record_does_not_see_the_teacher():
    from tunebook.common.estimate import activations

    student, other, batch = model(seed=2), model(seed=3), padded(rows())
    distillation.prepare(student, "student")
    teacher = distillation.Teacher(other, "teacher")
    recorder = activations.MemoryRecorder(student.parameters())
    with recorder:
        teacher.hidden(batch)
    assert not recorder.events


def tokenizers():
    from transformers import AutoTokenizer

    from tunebook.common.models import resolve

    return AutoTokenizer.from_pretrained(resolve("pocket")), AutoTokenizer.from_pretrained(resolve("pocket"))


def changed(tokenizer, change):
    from tokenizers import Tokenizer

    data = json.loads(tokenizer.backend_tokenizer.to_str())
    change(data)
    other = copy.deepcopy(tokenizer)
    other._tokenizer = Tokenizer.from_str(json.dumps(data))
    return other


def test_tokenizers_with_a_first_difference():
    one, other = tokenizers()
    assert vocabulary.difference(one, other) is None
    other.add_tokens(["<new>"])
    assert vocabulary.difference(one, other) is None  # after all of the other's

    def swapped(data):
        vocab = data["model"]["vocab"]
        a, b = (next(token for token, number in vocab.items() if number == place) for place in (700, 900))
        vocab[a], vocab[b] = 900, 700

    def merged(data):
        merges = data["model"]["merges"]
        merges[5], merges[6] = merges[6], merges[5]

    def lowered(data):
        data["normalizer"] = {"type": "Lowercase"}

    one, other = tokenizers()
    for change, says in ((swapped, "token 700 is "), (merged, "merges number 5 is "), (lowered, "the normalizer is ")):
        assert vocabulary.difference(one, changed(one, change)).startswith(says)
    with pytest.raises(UserError, match="--teacher big does not read the student's tokens: merges number 5"):
        vocabulary.require_same(one, changed(one, merged), "big")


def losses_of(recipe, folder, *words):
    """Losses of 8 steps of a recipe."""
    flags = ["--max_steps", "8", "--eval_suite", "none", "--sft", "logging_steps=1", "eval_strategy=no"]
    flags = [*flags, "load_best_model_at_end=false", "--output_dir", str(folder), *words]
    flags += ["--dataset", str(few.rows(folder.parent / "few"))]
    done = forked.run(ROOT / "recipes" / recipe, *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found = [line["loss"] for line in lines if "loss" in line]
    assert len(found) == 8
    return found


@pytest.mark.slow
@pytest.mark.recipe
def test_alpha_0_is_plain_sft_and_accumulation_changes_no_step(tmp_path):
    plain = losses_of("lora_alpaca.py", tmp_path / "plain")
    zero = losses_of("distill_alpaca.py", tmp_path / "zero", "--alpha", "0")
    assert zero == pytest.approx(plain, abs=1e-5)
    split = ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "4"]
    one, four = (losses_of("distill_alpaca.py", tmp_path / str(len(more)), *more) for more in ([], split))
    assert four == pytest.approx(one, abs=1e-5) and one != pytest.approx(plain, abs=1e-2)


def test_a_teacher_leaves_what_unsloth_noted_of_the_student(monkeypatch):
    """It keeps process-wide flags of the last load, by which it puts adapters on any model, or none."""
    from tunebook.common import distillation, models
    from tunebook.common.distillation import vocabulary

    def load(*_, **__):
        monkeypatch.setitem(os.environ, "UNSLOTH_USE_NEW_MODEL", "1")
        monkeypatch.setitem(os.environ, "UNSLOTH_ENABLE_FULL_FINETUNING", "0")
        return "model", "tokenizer"

    monkeypatch.delenv("UNSLOTH_USE_NEW_MODEL", raising=False)
    monkeypatch.setenv("UNSLOTH_ENABLE_FULL_FINETUNING", "1")
    monkeypatch.setattr(models, "load", load)
    monkeypatch.setattr(vocabulary, "require_same", lambda *_: None)
    monkeypatch.setattr(student, "Teacher", lambda model, name: (model, name))
    assert distillation.load_teacher("pocket_teacher", 64, False, None) == ("model", "pocket_teacher")
    assert "UNSLOTH_USE_NEW_MODEL" not in os.environ and os.environ["UNSLOTH_ENABLE_FULL_FINETUNING"] == "1"
