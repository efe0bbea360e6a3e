"""Order of training rows: every row once, the same steps however a step is split, random order, little padding."""

import json
from itertools import chain

import datasets
import forked
import numpy
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from tunebook.common.batching import samplers
from tunebook.common.batching.samplers import LengthGroupedSampler, padding_share
from tunebook.common.pocket import FOLDER as POCKET
from tunebook.common.tokens.lengths import lengths_of

SIZES = dict(vocab_size=120, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)


def lengths(count=1003, seed=0):
    """Long-tailed, as instruction rows are."""
    return numpy.random.default_rng(seed).lognormal(4, 0.6, count).astype(int).clip(2, 512)


@pytest.mark.parametrize(
    "count, group, window", [(1003, 8, 50), (64, 8, 4), (5, 8, 4), (1, 1, 1), (0, 4, 2), (999, 1, 7)]
)
def test_every_row_once_and_left_over_rows_last(count, group, window):
    buckets = LengthGroupedSampler(lengths(count), group, seed=3, window=window)
    for epoch in range(3):
        buckets.set_epoch(epoch)
        order = list(buckets)
        assert sorted(order) == list(range(count)) and len(buckets) == count
        assert all(isinstance(place, int) for place in order)
    if count == 1003:  # 3 rows are left over, and they are not the same ones, nor the longest, every time
        ends = {
            tuple(sorted(LengthGroupedSampler(lengths(count), group, seed).order(0)[-3:].tolist())) for seed in range(5)
        }
        assert len(ends) == 5


def test_order_is_that_of_seed_and_epoch_alone():
    one, two = LengthGroupedSampler(lengths(), 8, seed=1), LengthGroupedSampler(lengths(), 8, seed=1)
    for epoch in (0, 1, 2):
        two.set_epoch(epoch)
    torch.manual_seed(9), numpy.random.seed(9)
    one.set_epoch(2)
    assert list(one) == list(two)
    others = [
        LengthGroupedSampler(lengths(), 8, seed).order(epoch).tolist()
        for seed, epoch in ((1, 0), (1, 1), (2, 0), (0, 1))
    ]
    assert len({tuple(order) for order in [*others, list(one)]}) == 5


@pytest.mark.parametrize("lost", [dict(group=0), dict(group=1, window=0)])
def test_sizes_below_one(lost):
    with pytest.raises(ValueError, match="at least 1"):
        LengthGroupedSampler([1, 2], seed=0, **lost)


def steps(buckets, batch, processes=1):
    """Rows of each step, dealt out by accelerate where there are several processes."""
    accumulation = buckets.group // batch // processes
    plain = BatchSampler(buckets, batch, drop_last=False)
    shards = [list(BatchSamplerShard(plain, processes, place)) for place in range(processes)]
    shards = shards if processes > 1 else [list(plain)]
    for begin in range(0, len(shards[0]), accumulation):
        yield sorted(row for shard in shards for batch in shard[begin : begin + accumulation] for row in batch)


def test_a_step_has_the_same_rows_however_it_is_split():
    buckets = LengthGroupedSampler(lengths(1000), 8, seed=0)
    splits = [(8, 1), (4, 1), (1, 1), (2, 1), (4, 2), (2, 2), (1, 4)]
    found = [list(steps(buckets, *split)) for split in splits]
    assert len(found[0]) == 125 and all(other == found[0] for other in found)
    order = buckets.order(0)
    assert found[0] == [sorted(order[begin : begin + 8].tolist()) for begin in range(0, 1000, 8)]


def test_whole_groups_are_the_same_with_rows_left_over():
    buckets = LengthGroupedSampler(lengths(1003), 8, seed=0)
    one, two = list(steps(buckets, 8)), list(steps(buckets, 4, processes=2))
    assert len(one) == len(two) == 126 and one[:-1] == two[:-1]
    assert set(one[-1]) < set(two[-1])  # accelerate fills the last batches of several processes with rows of the first


def test_batches_come_in_random_order():
    """No trend of lengths over the epoch, and no likeness of neighbours."""
    sizes = lengths(8000)
    means = sizes[LengthGroupedSampler(sizes, 8, seed=0).order(0)].reshape(-1, 8).mean(axis=1)
    bound = 4 / len(means) ** 0.5  # four standard errors of a correlation of independent values
    assert abs(numpy.corrcoef(means, numpy.arange(len(means)))[0, 1]) < bound
    assert abs(numpy.corrcoef(means[:-1], means[1:])[0, 1]) < bound


def test_rows_meet_other_rows_in_another_epoch():
    buckets = LengthGroupedSampler(lengths(4000), 8, seed=0)
    pairs = [
        {
            (min(a, b), max(a, b))
            for group in buckets.order(epoch).reshape(-1, 8)
            for a in group
            for b in group
            if a != b
        }
        for epoch in (0, 1)
    ]
    assert len(pairs[0] & pairs[1]) < 0.1 * len(pairs[0])


def padded(sizes, order, batch):
    """Padding by making the batches: torch's own padding."""
    positions = 0
    for begin in range(0, len(order), batch):
        rows = [torch.zeros(int(sizes[place])) for place in order[begin : begin + batch]]
        positions += torch.nn.utils.rnn.pad_sequence(rows).numel()
    return 1 - sizes.sum() / positions


def test_padding_is_what_torch_pads_and_far_below_random_order():
    sizes = lengths()
    order = LengthGroupedSampler(sizes, 8, seed=0).order(0)
    shuffled = numpy.random.default_rng(0).permutation(len(sizes))
    for places in (order, shuffled):
        assert padding_share(sizes, places, 8) == pytest.approx(padded(sizes, places, 8))
    assert padding_share(sizes, order, 8) < 0.08 < 0.35 < padding_share(sizes, shuffled, 8)
    assert padding_share([3, 5], [0, 1], 2, multiple=8) == pytest.approx(0.5)
    assert padding_share([], [], 8) == 0


def test_a_million_rows_each_once():
    order = list(LengthGroupedSampler(lengths(1_000_000), 16, seed=0))
    assert len(set(order)) == 1_000_000


def dataset(count=101):
    ids = [[5] * int(size) for size in lengths(count).clip(2, 30)]
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": ids, "place": list(range(count))})


def test_lengths_through_selections():
    chosen = dataset().shuffle(seed=1).select(range(7, 90))
    assert lengths_of(chosen).tolist() == [len(row["input_ids"]) for row in chosen]
    assert lengths_of(chosen.select([])).tolist() == []


def collate(rows):
    ids, labels = (
        torch.nn.utils.rnn.pad_sequence([torch.tensor(row[name]) for row in rows], True, value)
        for name, value in (("input_ids", 0), ("labels", -100))
    )
    return {"input_ids": ids, "labels": labels}


def trainer(folder, seen, batch=4, accumulation=2):
    """`seen` takes the rows of every batch that the model computes; a row's first token is its place."""
    rows = dataset().map(lambda row: {"input_ids": [row["place"], *row["input_ids"][1:]]}).remove_columns("place")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    model.register_forward_pre_hook(
        lambda _, args, given: seen.append(sorted(given["input_ids"][:, 0].tolist())), with_kwargs=True
    )
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=3,
        save_steps=20,
        report_to="none",
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        seed=4,
    )
    made = Trainer(model=model, args=args, train_dataset=rows, data_collator=collate)
    samplers.group_by_length(made)
    return made


def flat(lists):
    return sorted(chain.from_iterable(lists))


def per_step(seen, batch, accumulation):
    """Rows of each step. The last step of an epoch has fewer batches."""
    found, each = [], -(-101 // batch)
    for begin in range(0, len(seen), each):
        epoch = seen[begin : begin + each]
        found += [flat(epoch[at : at + accumulation]) for at in range(0, each, accumulation)]
    return found


@pytest.fixture
def one_thread():
    """A model as small as this one only waits where several threads share a busy core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_through_a_trainer(tmp_path, capsys):
    seen, traded, resumed = [], [], []
    whole = trainer(tmp_path / "whole", seen)
    assert "% if shuffled)" in capsys.readouterr().out
    whole.train()
    steps = per_step(seen, 4, 2)
    assert len(steps) == 39
    assert all(flat(steps[begin : begin + 13]) == list(range(101)) for begin in (0, 13, 26))
    assert steps[:13] != steps[13:26]

    # Accumulation traded for batch size after the sampler was made: the same rows a step.
    other = trainer(tmp_path / "other", traded)
    other.args.per_device_train_batch_size = other._train_batch_size = 2
    other.args.gradient_accumulation_steps = other.accelerator.gradient_accumulation_steps = 4
    other.train()
    assert per_step(traded, 2, 4) == steps

    # Stopped in the second epoch, at step 20 of 39, and gone on: the same rows and the same weights.
    again = trainer(tmp_path / "whole", resumed)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-20"))
    assert flat(resumed) == flat(steps[20:]) and resumed == seen[-len(resumed) :]
    for mine, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


SCRIPT = """
import json, os, sys
import unsloth
import datasets, torch
from trl import SFTConfig, SFTTrainer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from tunebook.common.batching import samplers

folder, batch, accumulation, checkpoint = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(1)
torch.manual_seed(0)
ids = [[place + 1, *[5] * (place * 7 % 23)] for place in range(96)]
seen = []
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=1024, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
))
model.register_forward_pre_hook(lambda _, args, given: seen.append(given["input_ids"][:, 0].tolist()), with_kwargs=True)
trainer = SFTTrainer(
    model=model,
    processing_class=AutoTokenizer.from_pretrained(sys.argv[5]),
    train_dataset=datasets.Dataset.from_dict({"input_ids": ids, "labels": ids}),
    args=SFTConfig(
        output_dir=folder, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, seed=4,
        num_train_epochs=2, save_steps=17, report_to="none", disable_tqdm=True, use_cpu=True, bf16=False,
        packing=False, padding_free=False, dataset_kwargs={"skip_prepare_dataset": True},
        gradient_checkpointing=False, dataloader_pin_memory=False,
    ),
)
samplers.group_by_length(trainer)
trainer.train(resume_from_checkpoint=checkpoint if checkpoint != "-" else None)
with open(f"{folder}/seen{os.environ.get('RANK', 0)}.json", "w") as file:
    json.dump(seen, file)
"""


def sft(folder, processes, batch, accumulation, checkpoint="-"):
    """Rows of each step of SFTTrainer with Unsloth, in one process or in several."""
    folder.mkdir(exist_ok=True)
    (folder / "run.py").write_text(SCRIPT)
    words = [folder / "run.py", folder, batch, accumulation, checkpoint, POCKET / "model"]
    done = forked.run(*words, cwd=folder) if processes == 1 else forked.launch(processes, *words, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("% padding (") == 1, done.stdout
    ranks = [json.loads((folder / f"seen{rank}.json").read_text()) for rank in range(processes)]
    return [
        flat(chain.from_iterable(rank[at : at + accumulation] for rank in ranks))
        for at in range(0, len(ranks[0]), accumulation)
    ]


@pytest.mark.recipe
def test_through_trl_and_unsloth_in_one_and_in_two_processes(tmp_path):
    whole = sft(tmp_path / "one", 1, 4, 2)
    assert len(whole) == 24
    assert flat(whole[:12]) == flat(whole[12:]) == list(range(1, 97)) and whole[:12] != whole[12:]
    assert sft(tmp_path / "two", 2, 2, 2) == whole
    # transformers 5.17 cannot read an optimiser's state in several processes on CPU (torch knows no place "cpu:0").
    (tmp_path / "two" / "checkpoint-17" / "optimizer.pt").unlink()
    # Two processes gone on in the second epoch, where accelerate alone would give them the order of the first.
    assert sft(tmp_path / "two", 2, 2, 2, tmp_path / "two" / "checkpoint-17") == whole[17:]
