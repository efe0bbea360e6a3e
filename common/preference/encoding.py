"""Preference pairs to ids and batches; every lost pair is counted."""

import itertools
import json
import secrets
from collections import Counter
from collections.abc import Iterable, Sized
from dataclasses import dataclass
from typing import Any

from tunebook.common.data import rows
from tunebook.common.data.rows import FIELDS, NOT_ASKING, Row
from tunebook.common.process import progress
from tunebook.common.tokens import rendering
from tunebook.common.tokens.encoding import CHUNK
from tunebook.common.tokens.encoding_stats import EncodingStats
from tunebook.common.tokens.lengths import IGNORE_INDEX
from tunebook.common.tokens.templates import AnyTemplate
from tunebook.common.tokens.text_rendering import Encoded
from tunebook.common.tokens.tokenization import encoder

PARTS = ("prompt_ids", "chosen_ids", "rejected_ids")  # as TRL calls them


def encode(pairs: Iterable[Row], tokenizer: Any, template: AnyTemplate, max_length: int) -> tuple[Any, EncodingStats]:
    """Token ids of each pair that fits: both rows as encoding.encode makes them; last answers train.

    The prompt ends where the first of the two answers begins; what a template writes after an answer's end is dropped.

    Returns:
        A datasets.Dataset with int32 lists `prompt_ids`, `chosen_ids` and `rejected_ids` (answers with their end
        tokens), `input_ids` (the longer of the two sequences, for length grouping), `row` and `source`; and the stats,
        in pairs, with the tokens of both sequences. Reasons for a drop: `too_long`, `empty_output`, `identical`,
        `different_prompts`, `out_of_order` (turns that do not alternate); of pairs.load with bad_rows="drop",
        `template` and what was dropped on reading.

    Raises:
        UserError: rows that the template cannot render, all of them in one message.
    """
    stats, problems = EncodingStats(), []
    render, special = rendering.renderer(tokenizer, template, "last_assistant"), encoder(tokenizer).special
    table: dict[str, list] = {name: [] for name in (*PARTS, "input_ids", "row", "source")}
    remaining = progress.track(pairs, "encoding", len(pairs) if isinstance(pairs, Sized) else None, "pairs")
    while chunk := list(itertools.islice(remaining, CHUNK)):
        keep = []
        for place, pair in enumerate(chunk, 1):
            number = pair.get("row", stats.rows + place)
            if reason := _unfit(pair, pair["rejected"]):
                stats.drop(reason, number)
            else:
                keep.append((number, pair))
        stats.rows += len(chunk)
        better, bad, _ = render([pair for _, pair in keep])
        other, worse, _ = render([pair["rejected"] for _, pair in keep])
        for place, reason in sorted((worse | bad).items()):
            if getattr(pairs, "drop", False):
                stats.refuse(keep[place][0], reason)
            else:
                problems.append(f"row {keep[place][0]}: {reason}")
        for place, (number, pair) in enumerate(keep):
            if place not in bad and place not in worse:
                stats.special_text += special is not None and bool(special.search(_text(pair)))
                _add(table, stats, max_length, (number, str(pair.get("source", ""))), better[place], other[place])
    if problems:
        raise rendering.refused(template, problems)
    stats.add_dropped(Counter(getattr(pairs, "dropped", ())))
    return _dataset(table), stats


def _unfit(better: Row, other: Row) -> str:
    """Why a pair does not say which of two answers is better; empty where it does."""
    if "messages" in better:
        for row in (better, other):
            roles = [turn["role"] for turn in row["messages"] if turn["role"] not in NOT_ASKING]
            twice = any(a == b and a != "tool" for a, b in itertools.pairwise(roles))
            if twice or roles[:1] != ["user"] or roles[-1:] != ["assistant"]:
                return "out_of_order"
        if better["messages"][:-1] != other["messages"][:-1]:
            return "different_prompts"
    return "empty_output" if any(rows.answers_nothing(_last(row)) for row in (better, other)) else ""


def _last(row: Row) -> Row:
    """The row with its last turn alone, where it is a conversation."""
    return {"messages": row["messages"][-1:]} if "messages" in row else row


def _text(pair: Row) -> str:
    """All that is encoded of a pair, in one text to search."""
    return json.dumps([pair.get(name) for name in FIELDS] + [pair["rejected"]], ensure_ascii=False)


def _add(
    table: dict[str, list], stats: EncodingStats, limit: int, named: tuple[int, str], better: Encoded,
    other: Encoded,
) -> None:  # fmt: skip
    (chosen, (*_, (begins, ends, _))), (rejected, (*_, (start, end, _))) = better, other
    start = min(begins, start)
    prompt, chosen, rejected, other_prompt = chosen[:start], chosen[start:ends], rejected[start:end], rejected[:start]
    longer = max(chosen, rejected, key=len)
    if prompt != other_prompt:
        stats.drop("different_prompts", named[0])
    elif chosen == rejected:
        stats.drop("identical", named[0])
    elif len(prompt) + len(longer) > limit:
        stats.drop("too_long", named[0])
    else:
        stats.kept += 1
        stats.trained_tokens += len(chosen) + len(rejected)
        stats.tokens += 2 * len(prompt) + len(chosen) + len(rejected)
        for name, value in zip(table, (prompt, chosen, rejected, prompt + longer, *named), strict=True):
            table[name].append(value)


def _dataset(table: dict[str, list]) -> Any:
    import datasets
    import pyarrow

    ids = pyarrow.list_(pyarrow.int32())
    kinds = {"row": pyarrow.int64(), "source": pyarrow.string()}
    arrays = {name: pyarrow.array(values, kinds.get(name, ids)) for name, values in table.items()}
    return datasets.Dataset(pyarrow.table(arrays), fingerprint=secrets.token_hex(8))


@dataclass
class Collator:
    """Pairs as one batch of int64 (2B, T), padded to the longest: the B better sequences, then the B others.

    `labels` are IGNORE but for the answers, as in every batch here. Log-probabilities of a reference that TRL has
    computed before (`precompute_ref_log_probs`) go with them, (B,) each.
    """

    pad_token_id: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        both = [(row["prompt_ids"], row[answer]) for answer in PARTS[1:] for row in rows]
        width = max(len(prompt) + len(answer) for prompt, answer in both)
        ids_BT = torch.full((len(both), width), self.pad_token_id)
        labels_BT = torch.full((len(both), width), IGNORE_INDEX)
        mask_BT = torch.zeros((len(both), width), dtype=torch.long)
        for place, (prompt, answer) in enumerate(both):
            end = len(prompt) + len(answer)
            ids_BT[place, :end] = torch.tensor([*prompt, *answer])
            labels_BT[place, len(prompt) : end] = ids_BT[place, len(prompt) : end]
            mask_BT[place, :end] = 1
        batch = {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels_BT}
        known = [name for name in ("ref_chosen_logps", "ref_rejected_logps") if name in rows[0]]
        return batch | {name: torch.tensor([row[name] for row in rows]) for name in known}


def masked(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch as TRL's DPOTrainer takes it: `completion_mask` in place of `labels`."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return inputs | {"completion_mask": (batch["labels"] != IGNORE_INDEX).long()}
