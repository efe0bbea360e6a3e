"""Preference pairs to ids and batches; every lost pair is counted."""

import itertools
import json
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunebook.common.data import rows
from tunebook.common.data.rows import FIELDS, NOT_ASKING, Row
from tunebook.common.process import progress
from tunebook.common.run_folder import fingerprints
from tunebook.common.tokens import rendering
from tunebook.common.tokens.cache import cached
from tunebook.common.tokens.encoding import CHUNK, key_of
from tunebook.common.tokens.encoding_stats import EncodingStats
from tunebook.common.tokens.lengths import IGNORE_INDEX
from tunebook.common.tokens.templates import AnyTemplate
from tunebook.common.tokens.text_rendering import Encoded
from tunebook.common.tokens.tokenization import encoder

PARTS = ("prompt_ids", "chosen_ids", "rejected_ids")  # as TRL calls them


def encode(
    pairs: Iterable[Row], tokenizer: Any, template: AnyTemplate, max_length: int, folder: Path | None = None
) -> tuple[Any, EncodingStats]:
    """Token ids of each pair that fits: both rows as encoding.encode makes them; last answers train.

    The prompt ends where the first of the two answers begins; what a template writes after an answer's end is dropped.

    Args:
        folder: as in encoding.encode; pairs lie in a folder of their own in it.

    Returns:
        A datasets.Dataset with int32 lists `prompt_ids`, `chosen_ids` and `rejected_ids` (answers with their end
        tokens), `input_ids` (the longer of the two sequences, for length grouping), `row` and `source`; and the stats,
        in pairs, with the tokens of both sequences. Reasons for a drop: `too_long`, `empty_output`, `identical`,
        `different_prompts`, `out_of_order` (turns that do not alternate); of pairs.load with bad_rows="drop",
        `template` and what was dropped on reading.

    Raises:
        UserError: rows that the template cannot render, all of them in one message.
    """
    import datasets
    import pyarrow

    stats, drop = EncodingStats(), getattr(pairs, "drop", False)
    made = _batches(pairs, tokenizer, template, max_length, stats, drop)
    if folder is None:
        encoded = datasets.Dataset(pyarrow.Table.from_batches(made, _schema()), fingerprint=secrets.token_hex(8))
    else:
        settings = {"max_length": max_length, "drop": drop, "code": fingerprints.file(Path(__file__))}
        key = key_of(pairs, tokenizer, template, settings)
        encoded, record = cached(folder / "pairs", key, _schema(), made, stats.as_dict)
        stats = EncodingStats.from_dict(record)
    stats.add_dropped(Counter(getattr(pairs, "dropped", ())))
    return encoded, stats


def _batches(
    pairs: Iterable[Row], tokenizer: Any, template: AnyTemplate, max_length: int, stats: EncodingStats, drop: bool
) -> Iterator[Any]:
    """The encoded pairs as Arrow record batches; `stats` is updated on the way."""
    import pyarrow

    problems: list[str] = []
    render, special = rendering.renderer(tokenizer, template, "last_assistant"), encoder(tokenizer).special
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
            if drop:
                stats.refuse(keep[place][0], reason)
            else:
                problems.append(f"row {keep[place][0]}: {reason}")
        columns: list[list] = [[] for _ in _schema()]
        for place, (number, pair) in enumerate(keep):
            if place not in bad and place not in worse:
                stats.special_text += special is not None and bool(special.search(_text(pair)))
                _add(columns, stats, max_length, (number, str(pair.get("source", ""))), better[place], other[place])
        yield pyarrow.RecordBatch.from_arrays(list(map(pyarrow.array, columns, _schema().types)), schema=_schema())
    if problems:
        raise rendering.refused(template, problems)


def _schema() -> Any:
    import pyarrow

    ids = [(name, pyarrow.list_(pyarrow.int32())) for name in (*PARTS, "input_ids")]
    return pyarrow.schema([*ids, ("row", pyarrow.int64()), ("source", pyarrow.string())])


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
    columns: list[list], stats: EncodingStats, limit: int, named: tuple[int, str], better: Encoded,
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
        for column, value in zip(columns, (prompt, chosen, rejected, prompt + longer, *named), strict=True):
            column.append(value)


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
