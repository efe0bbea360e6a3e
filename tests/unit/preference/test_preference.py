"""Preference pairs: every usual form is read, each answer is encoded as in SFT, and lost pairs are counted."""

import json
import math
import subprocess

import few
import forked
import pytest
import torch
from paths import DATA, ROOT, TOKENIZERS, needs_data
from transformers import AutoTokenizer, LlamaConfig

from tunebook.common import data, preference
from tunebook.common.errors import UserError
from tunebook.common.estimate import schedule
from tunebook.common.models import resolve
from tunebook.common.pocket import FOLDER
from tunebook.common.preference import dpo, pairs
from tunebook.common.synthetic import pairs as pocket
from tunebook.common.synthetic import skills
from tunebook.common.tokens import encoding, templates
from tunebook.common.tokens.lengths import IGNORE_INDEX
from tunebook.common.training import callbacks

ASKED = {"role": "user", "content": "What is hot?"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("fire", "ice"))

pytestmark = pytest.mark.xdist_group("unsloth")  # imported in this process: in one is enough


def read(tmp_path, rows, *words, name="pairs.json"):
    path = tmp_path / name
    path.write_text(json.dumps(rows), encoding="utf-8")
    sides = pairs.load([str(path), *words])
    return sorted((row for side in sides.values() for row in side), key=lambda row: row["row"])


def many(row, count=8):
    """Rows that differ, so that they can be split."""
    return [json.loads(json.dumps(row).replace("hot", f"hot {place}")) for place in range(count)]


def instruction(answer):
    return {"instruction": "What is hot 0?", "input": "", "output": answer}


def chat(answer, *before):
    return {"messages": [*before, {"role": "user", "content": "What is hot 0?"}, answer]}


TURNS = [
    {"from": "human", "value": "Hi"},
    {"from": "gpt", "value": "Hello"},
    {"from": "human", "value": "What is hot?"},
]
SAID = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
SPOKEN = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: What is hot?\n\nAssistant: "
FORMS = {
    "rasbt": ({"instruction": "What is hot?", "input": "", "output": "fire!", "chosen": "fire", "rejected": "ice"},
              instruction("fire"), instruction("ice")),
    "texts": ({"question": "What is hot?", "chosen": "fire", "rejected": "ice"},
              {"prompt": "What is hot 0?", "completion": "fire"}, {"prompt": "What is hot 0?", "completion": "ice"}),
    "llama factory": ({"conversations": TURNS, "chosen": {"from": "gpt", "value": "fire"},
                       "rejected": {"from": "gpt", "value": "ice"}, "system": "Be short."},
                      chat(GOOD, {"role": "system", "content": "Be short."}, *SAID),
                      chat(BAD, {"role": "system", "content": "Be short."}, *SAID)),
    "trl": ({"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]}, chat(GOOD), chat(BAD)),
    "turns and texts": ({"messages": [ASKED], "chosen": "fire", "rejected": "ice"}, chat(GOOD), chat(BAD)),
    "text and turns": ({"prompt": "What is hot?", "chosen": [GOOD], "rejected": [BAD]}, chat(GOOD), chat(BAD)),
    "whole dialogues": ({"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}, chat(GOOD), chat(BAD)),
    "whole beside a prompt": ({"prompt": "What is hot?", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
                              chat(GOOD), chat(BAD)),
    "hh": ({"chosen": SPOKEN + "fire", "rejected": SPOKEN + "ice"}, chat(GOOD, *SAID), chat(BAD, *SAID)),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(form, tmp_path):
    row, better, other = FORMS[form]
    first = read(tmp_path, many(row))[0]
    assert {name: first[name] for name in better} == better
    assert first["rejected"] == other and first["row"] == 1


def test_columns_of_other_names(tmp_path):
    rows = many({"q": "What is hot?", "yes": "fire", "no": "ice"})
    first = read(tmp_path, rows, "instruction=q", "chosen=yes", "rejected=no")[0]
    assert (first["output"], first["rejected"]["output"]) == ("fire", "ice")


@pytest.mark.parametrize(
    "change, says",
    [
        ({"chosen": None}, ["row 3: `chosen` is null", "expected `instruction`, `chosen`, `rejected`"]),
        ({"rejected": 7}, ["row 3: `rejected` is a number, expected text"]),
        ({"rejected": ...}, ["row 3: `rejected` is missing (it has instruction, chosen)", "rejected=COLUMN"]),
        ({"instruction": []}, ["row 3: `instruction` is a list, expected text"]),
    ],
)
def test_a_wrong_row_is_named_once_with_its_remedy(change, says, tmp_path):
    rows = many({"instruction": "What is hot?", "chosen": "fire", "rejected": "ice"})
    rows[2] = {name: value for name, value in {**rows[2], **change}.items() if value is not ...}
    with pytest.raises(UserError) as error:
        read(tmp_path, rows)
    assert all(text in str(error.value) for text in says) and str(error.value).count("row 3") == 1


@pytest.mark.parametrize(
    "row, says",
    [
        ({"instruction": "a", "output": "b"}, "no pairs of answers: expected the columns `chosen` and `rejected`"),
        ({"chosen": "a", "rejected": "b"}, "no column holds what is asked"),
        ({"text": "a", "chosen": [GOOD], "rejected": [BAD]}, "instruction=COLUMN or prompt=COLUMN"),
        ({"conversations": 3, "chosen": [GOOD], "rejected": [BAD]}, "row 1: `conversations` is a number"),
        ({"chosen": [ASKED, GOOD], "rejected": [ASKED, ASKED]}, "`rejected` turn 2 is user after user"),
    ],
)
def test_what_is_no_pair_is_one_message(row, says, tmp_path):
    with pytest.raises(UserError) as error:
        read(tmp_path, many(row))
    assert says in str(error.value)


def test_lost_pairs_are_counted_with_their_rows(tmp_path, tokenizer):
    def spoken(*turns):
        return "".join(f"\n\n{'Assistant' if place % 2 else 'Human'}: {text}" for place, text in enumerate(turns))

    rows = [
        {"chosen": spoken("hot 1?", "fire"), "rejected": spoken("hot 1?", "ice")},
        {"chosen": spoken("hot 2?", "fire"), "rejected": spoken("hot 2?", "fire")},
        {"chosen": spoken("hot 3?", "fire"), "rejected": spoken("hot 3?", " ")},
        {"chosen": spoken("hot 4?", "fire"), "rejected": spoken("hot four?", "ice")},
        {"chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c", "rejected": "\n\nHuman: a\n\nHuman: b\n\nAssistant: d"},
        {"chosen": spoken("hot 6?", "fire"), "rejected": spoken("hot 6?", "ice " * 60)},
        {"chosen": spoken("hot 7?", "fire"), "rejected": spoken("hot 7?", "ice", "why?")},
        {"chosen": spoken("hot 8? <|im_end|>", "fire"), "rejected": spoken("hot 8? <|im_end|>", "ice")},
        {"chosen": spoken("hot 9?", "fire", "why?", "so"), "rejected": spoken("hot 9?", "ice")},
    ]
    encoded, counts = preference.encode(read(tmp_path, rows), tokenizer, templates.get("tokenizer", tokenizer), 60)
    assert (counts.rows, counts.kept, counts.special_text) == (9, 2, 1)
    assert counts.dropped_rows == {
        "identical": [2], "empty_output": [3], "different_prompts": [4, 9], "out_of_order": [5, 7], "too_long": [6],
    }  # fmt: skip
    assert encoded["row"] == [1, 8]
    control = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert encoded["prompt_ids"][0].count(control) == encoded["prompt_ids"][1].count(control)  # text stays text


def test_a_template_that_writes_the_prompt_by_its_answer_loses_the_pair(tmp_path, tokenizer):
    path = tmp_path / "odd.jinja"
    path.write_text(
        "{{ messages[-1]['content'] | length }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
    )
    rows = read(tmp_path, [*many(FORMS["trl"][0], 3), FORMS["trl"][0] | {"rejected": {**BAD, "content": "wood"}}])
    counts = preference.encode(rows, tokenizer, templates.get(str(path), tokenizer), 60)[1]
    assert dict(counts.dropped) == {"different_prompts": 3} and counts.kept == 1


def sequences(rows, tokenizer, template):
    """What masking.encode makes of the better rows and of the others."""
    both = [list(rows), [row["rejected"] for row in rows]]
    return [encoding.encode(some, tokenizer, template, 4096, train_on="last_assistant")[0] for some in both]


@pytest.mark.parametrize("name", ["alpaca", "tokenizer"])
def test_both_sequences_are_those_of_sft(name, tokenizer):
    template, rows = templates.get(name, tokenizer), pairs.load("pocket_pairs")["validation"][:100]
    encoded, counts = preference.encode(rows, tokenizer, template, 512)
    assert counts.kept == len(rows)
    trained = 0
    for answer, expected in zip(("chosen_ids", "rejected_ids"), sequences(rows, tokenizer, template), strict=True):
        for row, sft in zip(encoded, expected, strict=True):
            ids = row["prompt_ids"] + row[answer]
            labels = [IGNORE_INDEX] * len(row["prompt_ids"]) + row[answer]
            rest = sft["labels"][len(ids) :]  # a chat template's line break after the end of the answer
            assert (
                ids == sft["input_ids"][: len(ids)]
                and labels == sft["labels"][: len(ids)]
                and set(rest) <= {IGNORE_INDEX}
            )
            trained += len(row[answer])
    assert counts.trained_tokens == trained


def test_pairs_are_encoded_once_and_read_back_equal(tokenizer, tmp_path, capsys):
    """By the next run, and by the other processes of a machine."""
    rows = pairs.load("pocket_pairs")["test"][:20]
    plain = preference.encode(rows, tokenizer, templates.ALPACA, 60)
    first, again = (preference.encode(rows, tokenizer, templates.ALPACA, 60, folder=tmp_path) for _ in range(2))
    assert capsys.readouterr().out.count("tokens: read from") == 1
    for encoded, counts in (first, again):
        assert encoded.to_dict() == plain[0].to_dict() and encoded.features == plain[0].features
        assert counts == plain[1] and counts.dropped["too_long"] and counts.kept
    preference.encode([*rows[:-1], rows[0]], tokenizer, templates.ALPACA, 60, folder=tmp_path)
    assert "read from" not in capsys.readouterr().out


def test_a_batch_is_padded_and_masked(tokenizer):
    encoded, _ = preference.encode(pairs.load("pocket_pairs")["test"][:5], tokenizer, templates.ALPACA, 512)
    batch = preference.Collator(0)([encoded[place] for place in range(5)])
    given = preference.masked(batch)
    assert set(given) == {"input_ids", "attention_mask", "completion_mask"} and len(batch["input_ids"]) == 10
    for place, row in enumerate(encoded):
        for half, answer in ((0, "chosen_ids"), (5, "rejected_ids")):
            ids = row["prompt_ids"] + row[answer]
            real = batch["attention_mask"][place + half].bool()
            assert batch["input_ids"][place + half][real].tolist() == ids
            assert given["completion_mask"][place + half].sum() == len(row[answer])
    assert torch.equal(batch["labels"] != IGNORE_INDEX, given["completion_mask"].bool())


def test_rewards_by_hand():
    policy, reference = torch.tensor([[-1.0, -4.0, -3.0, -2.0], [-2.0, -3.0, -3.0, -5.0]]).double(), torch.zeros(2, 4)
    found = dpo.reward_metrics(policy, reference.double(), beta=0.5)
    assert found["reward_chosen"] == -1.25 and found["reward_rejected"] == -1.625 and found["margin"] == 0.375
    assert (found["accuracy"], found["likelier"], found["ties"]) == (0.625, 0.625, 0.25)
    start = dpo.reward_metrics(policy, policy, beta=0.5)
    assert (start["accuracy"], start["ties"], start["margin"], start["likelier"]) == (0.5, 1.0, 0.0, 0.625)


def test_a_held_out_loss_is_a_mean_over_pairs():
    class Stub:
        class accelerator:
            reduce = staticmethod(lambda value, how: value)

        class model:
            config = LlamaConfig()

        args = get_eval_dataloader = None

        def prediction_step(self, model, inputs):
            return torch.tensor(inputs["loss"]), None, None

        def evaluation_loop(self, metric_key_prefix="eval"):
            for loss, count in ((1.0, 3), (5.0, 1)):
                self.prediction_step(None, {"loss": loss, "input_ids": torch.zeros(2 * count, 4)})
            return type("Output", (), {"metrics": {"eval_loss": 3.0}})

    trainer = Stub()
    callbacks.mean_over(trainer, dpo.num_pairs)
    for _ in range(2):
        assert trainer.evaluation_loop().metrics["eval_loss"] == 2.0


def test_a_pair_is_two_sequences_to_the_forecast(tmp_path, made):
    trainer, batches = made(tmp_path, adapter=False, max_steps=5, per_device_train_batch_size=6), []
    expected, fetch = schedule.of_trainer(trainer), trainer.get_batch_samples

    def kept(*words, **named):
        found = fetch(*words, **named)
        batches.extend(tuple(batch["input_ids"].shape) for batch in found[0])
        return found

    trainer.get_batch_samples = kept
    trainer.train()
    assert batches == list(zip(expected.rows, expected.widths, strict=True)) and batches[0][0] == 12
    assert expected.batch_size == 6


def test_what_cannot_be_started_from(tmp_path):
    for text in (None, "{}", '{"peft_type": "PREFIX_TUNING"}'):
        if text:
            (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(UserError, match="PREFIX_TUNING" if text and "PRE" in text else "lora_alpaca"):
            dpo.check_adapter(str(tmp_path))
    templates.ALPACA.save(tmp_path)
    assert dpo.template("alpaca", None, None, str(tmp_path)) == templates.ALPACA
    with pytest.raises(UserError, match="was tuned with alpaca; --template alpaca"):
        dpo.template("plain", None, None, str(tmp_path))


# --- pocket's pairs


@pytest.fixture(scope="module")
def files():
    names = ("pairs_train.jsonl", "pairs_validation.jsonl", "pairs_test.jsonl")
    return {name: [json.loads(line) for line in (FOLDER / name).open(encoding="utf-8")] for name in names}


def test_files_are_what_the_generator_writes(files):
    assert pocket.files() == files
    assert len(files["pairs_train.jsonl"]) >= 1500 and len(files["pairs_test.jsonl"]) >= 500


def test_pairs_keep_to_their_sides(files):
    asked = [{(row["instruction"], row["input"]) for row in rows} for rows in files.values()]
    assert not (asked[0] & asked[1] or asked[0] & asked[2] or asked[1] & asked[2])
    taught = {(row["instruction"], row["input"]) for row in data.load("pocket")["test"]}
    assert not asked[0] & taught  # what is scored is not what is trained on
    for form in pocket.RAMBLES["unseen"]:
        head = form.partition("{y}")[0]
        assert not head or not any(row["rejected"].startswith(head) for row in files["pairs_train.jsonl"])


def test_every_skill_has_wrong_and_rambling_answers(files):
    for rows in files.values():
        found = {flaw: {row["skill"] for row in rows if row["flaw"] == flaw} for flaw in ("wrong", "rambling")}
        assert len(found["wrong"] & found["rambling"]) >= 30
        assert all(row["chosen"] in row["rejected"] for row in rows if row["flaw"] == "rambling")
        assert all(len(row["rejected"]) > len(row["chosen"]) + 30 for row in rows if row["flaw"] == "rambling")


def test_a_mistake_is_never_right():
    import random

    rng = random.Random(3)
    for name in skills.SKILLS:
        drawn = [skills.draw(name, rng) for _ in range(60)]
        made = [(slots, pocket.mistake(name, slots, rng)) for slots in drawn]
        assert all(answer != slots["y"] for slots, answer in made)
        assert sum(bool(answer) for _, answer in made) >= 40


# --- the trainer


@pytest.fixture(scope="module")
def made(tokenizer):
    """A function that makes a trainer as the recipe does, over pocket with an adapter that adds something."""
    import unsloth  # noqa: F401
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    rows = pairs.load("pocket_pairs")["train"][:32]
    encoded, _ = preference.encode(rows, tokenizer, templates.ALPACA, 512)

    def make(folder, adapter, **values):
        model = AutoModelForCausalLM.from_pretrained(resolve("pocket"), dtype=torch.float32)
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        if adapter:
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if "lora_B" in name:
                        weight.normal_(std=0.05)
        settings = dict(output_dir=str(folder), report_to="none", max_steps=2, learning_rate=1e-3, logging_steps=1,
                        gradient_checkpointing=False, bf16=False, save_strategy="no", disable_tqdm=True)  # fmt: skip
        trainer = dpo.PreTokenizedDPOTrainer(DPOTrainer)(
            model=model, processing_class=tokenizer, train_dataset=encoded, eval_dataset=encoded,
            data_collator=preference.Collator(0), args=DPOConfig(**{**settings, **values}),
        )  # fmt: skip
        dpo.set_reference(trainer, adapter)
        return trainer

    return make


def log_probs(model, rows, answer):
    """Of each answer, by plain logits in float64: one row at a time, with nothing of TRL."""
    found = []
    for row in rows:
        ids = torch.tensor([row["prompt_ids"] + row[answer]])
        said = model(input_ids=ids, use_cache=False).logits.double().log_softmax(-1)
        start = len(row["prompt_ids"])
        found.append(said[0, start - 1 : -1].gather(1, ids[0, start:, None]).sum())
    return torch.stack(found)


@pytest.mark.recipe
@pytest.mark.parametrize("adapter", [False, True], ids=["new", "going on"])
def test_loss_and_gradient_are_the_formula(made, tmp_path, adapter):
    """ln 2 at the start; after the adapter has moved, -log sigmoid(beta·margin) of float64 and its gradient."""
    trainer = made(tmp_path, adapter)
    model, rows = trainer.model.eval(), [trainer.train_dataset[place] for place in range(6)]
    batch = trainer.data_collator(rows)
    assert ("ref" in model.peft_config) == adapter
    assert trainer.compute_loss(model, batch).item() == pytest.approx(math.log(2), abs=1e-6)
    with torch.no_grad():
        reference = torch.stack([log_probs(model, rows, name) for name in ("chosen_ids", "rejected_ids")])
        torch.manual_seed(1)
        for name, weight in model.named_parameters():
            if ".default." in name:
                weight.add_(torch.randn_like(weight) * 0.1)
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    trained = [weight for weight in model.parameters() if weight.grad is not None]
    theirs = torch.cat([weight.grad.flatten() for weight in trained])
    assert len(trained) == sum(".default." in name for name, _ in model.named_parameters())
    model.zero_grad()
    policy = torch.stack([log_probs(model, rows, name) for name in ("chosen_ids", "rejected_ids")])
    margins = 0.1 * ((policy - reference)[0] - (policy - reference)[1])
    expected = torch.nn.functional.softplus(-margins).mean()
    assert abs(expected.item() - math.log(2)) > 0.01  # it has moved
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    expected.backward()
    ours = torch.cat([weight.grad.flatten() for weight in trained])
    assert (theirs - ours).norm() <= 1e-4 * ours.norm()
    found = dpo.Rewards(trainer, trainer.train_dataset.select(range(6)))
    found.evaluate("after")
    assert found.results["after"]["margin"] == pytest.approx(margins.mean().item(), abs=1e-4)


@pytest.mark.recipe
def test_splits_of_a_step_change_nothing(made, tmp_path):
    weights = []
    for size, steps in ((8, 1), (2, 4)):
        values = dict(per_device_train_batch_size=size, gradient_accumulation_steps=steps)
        trainer = made(tmp_path, adapter=True, optim="sgd", **values)
        trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(range(32))
        trainer.train()
        moved = [weight for name, weight in trainer.model.named_parameters() if ".default." in name]
        weights.append(torch.cat([weight.detach().flatten() for weight in moved]))
    still = torch.cat([w.detach().flatten() for n, w in trainer.model.named_parameters() if ".ref." in n])
    step = (weights[0] - still).norm()
    assert step > 1e-4 and (weights[0] - weights[1]).norm() < 1e-3 * step


@pytest.mark.recipe
def test_a_reference_computed_before_is_the_same(made, tmp_path):
    losses = []
    for before in (False, True):
        trainer = made(tmp_path, adapter=True, precompute_ref_log_probs=before)
        assert ("ref_chosen_logps" in trainer.train_dataset.column_names) == before
        trainer.train()
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and losses[0][1] < math.log(2)


@pytest.mark.recipe
def test_only_the_adapter_is_saved(made, tmp_path):
    """With the copy in a checkpoint, transformers would load that alone and go on from the start."""
    trainer = made(tmp_path / "run", adapter=True)
    trainer.save_model(str(tmp_path / "saved"))
    assert not (tmp_path / "saved" / "ref").exists() and (tmp_path / "saved" / "adapter_model.safetensors").exists()


def from_trl(rows, tokenizer, folder):
    """What TRL's own preparation makes of texts: its trainer's data set."""
    import unsloth  # noqa: F401
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import DPOConfig, DPOTrainer

    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tiny = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8,
                                        num_hidden_layers=1, num_attention_heads=1))  # fmt: skip
    reference = LlamaForCausalLM(tiny.config)
    return DPOTrainer(
        model=tiny, ref_model=reference, processing_class=tokenizer, train_dataset=Dataset.from_list(rows),
        args=DPOConfig(output_dir=str(folder), max_length=4096, report_to="none", bf16=False),
    ).train_dataset  # fmt: skip


def same_as_trl(rows, tokenizer, folder):
    encoded, counts = preference.encode(rows, tokenizer, templates.ALPACA, 4096)
    assert counts.kept == len(rows)
    texts = [{"prompt": templates.ALPACA.prompt(row), "chosen": row["output"], "rejected": row["rejected"]["output"]}
             for row in rows]  # fmt: skip
    theirs = from_trl(texts, tokenizer, folder)
    different = [
        (row["row"], name)
        for row, their in zip(encoded, theirs, strict=True)
        for name in preference.PARTS
        if row[name] != their[name]
    ]
    assert not different, f"{len(different)} differ, first {different[:5]}"


@pytest.mark.recipe
def test_ids_and_batches_are_those_of_trl(tokenizer, tmp_path):
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    rows = pairs.load("pocket_pairs")["train"][:200]
    same_as_trl(rows, tokenizer, tmp_path)
    encoded, _ = preference.encode(rows, tokenizer, templates.ALPACA, 512)
    part = [encoded[place] for place in range(16)]
    theirs, ours = DataCollatorForPreference(pad_token_id=0)(part), preference.masked(preference.Collator(0)(part))
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in theirs)


# --- real files

FILES = {  # name: template, rows, and what is lost of them at any length
    "hh_rlhf_harmless_base_test.jsonl.gz": ("llama3", 2312, {"out_of_order": 9, "empty_output": 4}),
    "llamafactory_dpo_en_demo.json": ("tokenizer", 300, {}),
    "rasbt_instruction_data_with_preference.json": ("alpaca", 1100, {"identical": 6}),
}


@needs_data
@pytest.mark.real_data
@pytest.mark.parametrize("name", FILES)
def test_real_files_lose_what_is_named_and_are_encoded_as_in_sft(name):
    template_name, count, lost = FILES[name]
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZERS / "qwen2.5")
    template = templates.get(template_name, tokenizer)
    sides = pairs.load(str(DATA / "preference" / name))
    rows = sorted((row for side in sides.values() for row in side), key=lambda row: row["row"])
    assert len(rows) == count
    encoded, counts = preference.encode(rows, tokenizer, template, 100_000)
    assert dict(counts.dropped) == lost and counts.kept == count - sum(lost.values())
    some = encoded.select(range(0, len(encoded), max(1, len(encoded) // 300)))
    kept = [rows[number - 1] for number in some["row"]]
    for answer, expected in zip(("chosen_ids", "rejected_ids"), sequences(kept, tokenizer, template), strict=True):
        for row, sft in zip(some, expected, strict=True):
            ids, start = row["prompt_ids"] + row[answer], len(row["prompt_ids"])
            assert ids == sft["input_ids"][: len(ids)] and row[answer] == sft["labels"][start : len(ids)]
            assert set(sft["labels"][:start] + sft["labels"][len(ids) :]) <= {IGNORE_INDEX}


@needs_data
@pytest.mark.real_data
@pytest.mark.recipe
def test_real_conversations_equal_trl(tmp_path):
    """But for the line break that the template writes after the end of an answer: TRL trains it, SFT here does not."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZERS / "qwen2.5")
    rows = pairs.load(str(DATA / "preference" / "llamafactory_dpo_en_demo.json"))["train"][:100]
    encoded, _ = preference.encode(rows, tokenizer, templates.get("tokenizer", tokenizer), 100_000)
    turns = [{"prompt": row["messages"][:-1], "chosen": row["messages"][-1:],
              "rejected": row["rejected"]["messages"][-1:]} for row in rows]  # fmt: skip
    end = tokenizer("\n").input_ids
    for row, their in zip(encoded, from_trl(turns, tokenizer, tmp_path), strict=True):
        assert row["prompt_ids"] == their["prompt_ids"]
        assert all(row[name] + end == their[name] for name in ("chosen_ids", "rejected_ids"))


@needs_data
@pytest.mark.real_data
@pytest.mark.recipe
@pytest.mark.parametrize("name", ["llama3", "qwen2.5", "gpt2", "mistral-v3"])
def test_real_pairs_equal_trl(name, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZERS / name)
    sides = pairs.load(str(DATA / "preference" / "rasbt_instruction_data_with_preference.json"))
    rows = [row for row in sides["train"] if row["output"] != row["rejected"]["output"]][:300]
    same_as_trl(rows, tokenizer, tmp_path)


# --- the recipe


def run(*words):
    return forked.run(ROOT / "recipes" / "dpo_pairs.py", *words)


@pytest.mark.recipe
@pytest.mark.slow
def test_an_adapter_over_four_bits_goes_on_and_resumes(made, tmp_path):
    """The first loss is ln 2 although TRL rounds what trains, and a run that was killed ends with the same weights."""
    start = made(tmp_path / "made", adapter=True)
    start.save_model(str(tmp_path / "sft"))
    templates.ALPACA.save(tmp_path / "sft")
    flags = ["--model", "pocket", "--adapter", tmp_path / "sft", "--four_bit", "--max_steps", 5, "--eval_suite", "none",
             "--dataset", few.rows(tmp_path / "few", "pairs"), "--sft", "logging_steps=1"]  # fmt: skip
    whole, part = tmp_path / "whole", tmp_path / "part"
    done = run("--output_dir", whole, *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    logged = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in logged if "loss" in line]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6) and len(losses) == 5
    report = json.loads((whole / "report.json").read_text())
    found = report["scores"]["preference"]
    assert found["before"]["accuracy"] == 0.5 and found["before"]["ties"] == 1.0 and found["after"]["ties"] < 0.1
    assert report["train"]["trainable_parameters"] == sum(
        weight.numel() for name, weight in start.model.named_parameters() if ".default." in name
    )
    subprocess.run(["cp", "-r", whole, part], check=True)
    for path in (part / "report.json", part / "report.html"):
        path.unlink()
    last = max(part.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    subprocess.run(["rm", "-r", last, part / "adapter"], check=True)
    done = run("--output_dir", part, *flags)
    assert done.returncode == 0 and "resuming from" in done.stdout, done.stderr[-3000:]

    from safetensors.torch import load_file

    one, two, first = (load_file(f / "adapter_model.safetensors")
                       for f in (whole / "adapter", part / "adapter", tmp_path / "sft"))  # fmt: skip
    assert one.keys() == first.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], first[name]) for name in one)
    words = ["--output_dir", tmp_path / "other", "--adapter", tmp_path / "sft", "--model", "pocket_teacher"]
    done = run(*words)  # of another model
    assert done.returncode == 2 and "cannot be put on this model" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.recipe
def test_what_is_missing_is_one_message(tmp_path):
    for words, says in (
        (["--adapter", tmp_path], "lora_alpaca"),
        (["--dataset", "pocket"], "no pairs of answers"),
        (["--model", "pocketteacher"], "no such folder"),
    ):
        done = run("--output_dir", tmp_path / "run", *words)
        assert done.returncode == 2 and says in done.stderr.replace("\n", " ") and "Traceback" not in done.stderr
