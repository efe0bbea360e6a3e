"""The plain loop's own step: however the rows of a step are split into batches, the weights are the same."""

import sys

import forked
import pytest
from paths import ROOT


def main() -> None:
    """Train ten steps of 4 rows, split in each way, by the recipe's train_step; fail where the weights differ."""
    import importlib.util

    import torch
    import unsloth  # noqa: F401  TRL's head runs on a CPU with it
    from accelerate import Accelerator
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl.trainer import add_fused_lm_head

    from tunebook.common.training import loop

    spec = importlib.util.spec_from_file_location("loop", ROOT / "recipes" / "loop_alpaca.py")
    recipe = importlib.util.module_from_spec(spec)
    sys.modules["loop"] = recipe
    spec.loader.exec_module(recipe)
    sizes = dict(vocab_size=200, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
    weights = {}
    for split in ([4], [1, 1, 1, 1], [2, 2]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**sizes))
        first = [parameter.detach().clone() for parameter in model.parameters()]
        add_fused_lm_head(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        accelerator = Accelerator(cpu=True)
        model, optimizer = accelerator.prepare(model, optimizer)
        model.train()
        generator = torch.Generator().manual_seed(1)
        for _ in range(10):
            ids = torch.randint(5, 200, (4, 60), generator=generator)
            labels = ids.clone()
            for row, length in enumerate(torch.randint(4, 60, (4,), generator=generator).tolist()):
                labels[row, :length] = -100
            parts = zip(ids.split(split), labels.split(split), strict=True)
            batches = [
                {"input_ids": part, "labels": some, "attention_mask": torch.ones_like(part)} for part, some in parts
            ]
            recipe.train_step(accelerator, model, optimizer, schedule, batches, sum(map(loop.total_weight, batches)))
        weights[tuple(split)] = [parameter.detach() for parameter in model.parameters()]
    moved = max((a - b).abs().max().item() for a, b in zip(first, weights[(4,)], strict=True))
    for split, mine in weights.items():
        worst = max((a - b).abs().max().item() for a, b in zip(mine, weights[(4,)], strict=True))
        print(split, f"differs by {worst:.1e}, moved by {moved:.1e}")
        assert worst < 1e-6 < 1e-2 < moved


@pytest.mark.recipe
def test_splits_of_a_step_give_the_same_weights():
    done = forked.run(__file__)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout


if __name__ == "__main__":
    main()
