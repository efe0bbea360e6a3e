"""Pre-training from scratch: the tokenizer and the small Llama that the other recipes start from.

    python recipes/pretrain_pocket.py
    python recipes/pretrain_pocket.py --max_steps 200 --output_dir runs/try

Measured on 2 shared CPU cores: 12.3 million tokens in 68 minutes (6,789 CPU seconds), held-out loss 1.47.
"""

from dataclasses import dataclass

from tunebook.common import cli

SHAPE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


@dataclass
class Args:
    output_dir: str = "runs/pretrain_pocket"  # output folder; gets model/ and pretraining.json
    max_steps: int = 3000  # of per_device_train_batch_size x max_length tokens
    learning_rate: float = 5e-3  # peak; the linear decay to zero takes the last 40 % of the steps
    per_device_train_batch_size: int = 16  # sequences a step
    max_length: int = 256  # tokens a sequence
    long_length: int = 512  # tokens a sequence in the last tenth of the steps, at the same tokens a step
    vocab_size: int = 3072
    hidden_size: int = 192
    num_hidden_layers: int = 4
    num_attention_heads: int = 6
    intermediate_size: int = 512
    seed: int = 0
    resume: bool = True  # resume an interrupted run in output_dir
    allow_changes: bool = False  # resume it although recipe, arguments or versions have changed
    overwrite: bool = False  # write over a model that is already in output_dir


def main(args: Args) -> dict:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tunebook.common import files
    from tunebook.common.models import device as devices
    from tunebook.common.pocket import tokenizer
    from tunebook.common.synthetic import corpus
    from tunebook.common.training import muon
    from tunebook.common.training.plain_run import PlainRun

    per_step = args.per_device_train_batch_size * args.max_length
    run = PlainRun(__file__, args, per_step, marker="pretraining.json", result="model/model.safetensors")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)

    # Tokenizer: byte-level BPE in which every common word is one token.
    bpe = tokenizer.train(corpus.documents(6000, args.seed), args.vocab_size)
    bpe.save_pretrained(run.dir / "model")

    # Data: as many documents as the steps need, one after the other, cut into sequences.
    ids = corpus.token_ids(bpe, args.max_steps * per_step, args.seed)
    held_out = corpus.token_ids(bpe, 8 * per_step, args.seed + 1)[: 8 * per_step].view(-1, args.max_length)
    config = LlamaConfig(
        **{name: getattr(args, name) for name in SHAPE},
        num_key_value_heads=args.num_attention_heads,
        max_position_embeddings=args.long_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=bpe.eos_token_id,
        pad_token_id=bpe.pad_token_id,
    )
    model = LlamaForCausalLM(config).to(device)
    optimizers = muon.optimizers(model, args.learning_rate)  # AdamW for embeddings and norms
    run.load(model, optimizers)
    for step in range(run.step, args.max_steps):
        rate = args.learning_rate * min((step + 1) / 100, 1, (args.max_steps - step) / (0.4 * args.max_steps))
        length = args.max_length if step < 0.9 * args.max_steps else args.long_length
        batch_BT = ids[step * per_step : (step + 1) * per_step].view(-1, length).to(device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=devices.current().dtype == torch.bfloat16):
            loss = model(input_ids=batch_BT, labels=batch_BT, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        if step % 50 == 0 or step == args.max_steps - 1:
            run.log(step, round(loss.item(), 4))
        run.save_where_due(step + 1, args.max_steps, model, optimizers)

    model.eval().requires_grad_(False)
    losses = [model(input_ids=b, labels=b, use_cache=False).loss.item() for b in held_out.to(device).split(16)]
    model.save_pretrained(run.dir / "model")
    record = dict(command="python recipes/pretrain_pocket.py", args=vars(args), parameters=model.num_parameters())
    record |= dict(tokens=args.max_steps * per_step, device=device, loss=run.curve, **run.finish())
    record["held_out_loss"] = round(sum(losses) / len(losses), 4)
    files.write_json(run.dir / "pretraining.json", record)
    print(f"held-out loss {record['held_out_loss']} · {run.dir / 'model'}")
    return record


if __name__ == "__main__":
    cli.run(main, Args)
