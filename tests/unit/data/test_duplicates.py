"""The near-duplicate join against brute force and against MinHash, and exact duplicates."""

import random

import numpy as np
import pytest

from tunebook.common.data import dedup, similarity
from tunebook.common.data.texts import normalized

WORDS = [
    "river",
    "stone",
    "lamp",
    "green",
    "seven",
    "slowly",
    "under",
    "bright",
    "market",
    "window",
    "carry",
    "between",
    "paper",
    "yellow",
    "ocean",
]


def _grams(text):
    text = normalized(text)
    return {text[i : i + 5] for i in range(max(len(text) - 4, 1))}


def _brute(texts, threshold):
    sets = [_grams(text) for text in texts]
    pairs = {}
    for i in range(len(texts)):
        for j in range(i + 1, len(texts)):
            similarity = len(sets[i] & sets[j]) / len(sets[i] | sets[j])
            if similarity >= threshold - 1e-12:
                pairs[i, j] = similarity
    return pairs


def _mutated(count, seed, alphabet="abcdeфщ漢字🙂"):
    """Texts of many lengths, most of them a few edits away from an earlier one."""
    chance = random.Random(seed)
    texts = ["x", "xy", "abcd", "abcde", "", "a b c d e f"]
    while len(texts) < count:
        if chance.random() < 0.3:
            text = " ".join(chance.choice(WORDS) for _ in range(chance.randint(1, 40)))
        else:
            letters = list(chance.choice(texts))
            for _ in range(chance.randint(1, 4)):
                letters.insert(chance.randint(0, len(letters)), chance.choice(alphabet))
                if chance.random() < 0.5:
                    letters.pop(chance.randrange(len(letters)))
            text = "".join(letters)
        if normalized(text) not in {normalized(other) for other in texts}:
            texts.append(text)
    return texts


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.75, 0.8, 0.9, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_near_equals_brute_force(threshold, seed):
    texts = _mutated(200, seed)
    expected = _brute(texts, threshold)
    found = dedup.near(texts, threshold)
    assert [(i, j) for i, j, _ in found] == sorted(expected)
    assert all(abs(similarity - expected[i, j]) < 1e-12 for i, j, similarity in found)
    assert threshold == 1.0 or len(found) > 5


def test_near_in_small_blocks_and_parts(monkeypatch):
    texts = _mutated(250, 2)
    whole = dedup.near(texts, 0.6)
    monkeypatch.setattr(similarity, "BLOCK", 7)
    monkeypatch.setattr(similarity, "ENTRIES", 50)
    monkeypatch.setattr(similarity, "PART_TEXTS", 3)
    monkeypatch.setattr(similarity, "PART_CHARACTERS", 100)
    assert dedup.near(texts, 0.6) == whole
    assert len(set(dedup.groups(texts, 0.6).tolist())) == len(set(_components(texts, 0.6)))


def _components(texts, threshold):
    root = list(range(len(texts)))
    changed = True
    pairs = _brute(texts, threshold)
    while changed:
        changed = False
        for i, j in pairs:
            if root[i] != root[j]:
                root[i] = root[j] = min(root[i], root[j])
                changed = True
    return root


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_groups_are_the_connected_components(threshold):
    texts = _mutated(300, 3)
    texts += [texts[7].upper(), texts[7] + "  ", texts[100]]
    root = _components(texts, threshold)
    found = dedup.groups(texts, threshold).tolist()
    assert len(set(zip(root, found, strict=True))) == len(set(root)) == len(set(found))


def test_near_agrees_with_minhash():
    from datasketch import MinHash, MinHashLSH

    texts = _mutated(600, 4)
    index = MinHashLSH(threshold=0.6, num_perm=128)  # low, so that it finds nearly all of those at 0.8
    hashes = []
    for place, text in enumerate(texts):
        sketch = MinHash(num_perm=128)
        sketch.update_batch([gram.encode() for gram in _grams(text)])
        index.insert(place, sketch)
        hashes.append(sketch)
    sets = [_grams(text) for text in texts]
    theirs = {
        (i, j)
        for i, sketch in enumerate(hashes)
        for j in index.query(sketch)
        if i < j and len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= 0.8
    }
    ours = {(i, j) for i, j, _ in dedup.near(texts, 0.8)}
    assert theirs <= ours
    assert len(theirs) >= 0.9 * len(ours) > 20


def test_repeats_are_paired_with_the_first():
    texts = ["Name a red fruit.", "something else", "name a  red FRUIT.", "Name a red fruit."]
    assert dedup.near(texts) == [(0, 2, 1.0), (0, 3, 1.0)]
    assert dedup.groups(texts).tolist() == [0, 1, 0, 0]
    assert dedup.groups(texts, None).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("texts", [[], ["one"], ["", ""], ["\ud800 lone", "\ud800  lone"]])
def test_small_sets(texts):
    assert dedup.near(texts) == [(0, 1, 1.0)][: len(texts) - 1 if texts else 0]
    assert len(dedup.groups(texts)) == len(texts)


def test_a_dense_set_is_one_group():
    texts = [f"Please add the two numbers {n} and {n + 1} and write the sum." for n in range(3000)]
    assert np.bincount(dedup.groups(texts, 0.6)).max() == 3000


@pytest.mark.parametrize("threshold", [0, -1, 1.5])
def test_a_wrong_threshold(threshold):
    with pytest.raises(ValueError, match="similarity"):
        dedup.near(["a", "b"], threshold)
