"""Unigram language model segmentation (Kudo 2018, arXiv:1804.10959, section 3).

Every piece has a log-probability; a segmentation scores the sum over its pieces. Encoding takes the best one (Viterbi),
sampling draws one with probability proportional to P(x)**alpha, training alternates EM with dropping the pieces whose loss
hurts least.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from llmlab.reference.op import Procedure
from llmlab.reference.tokenizers.bpe import zipf_words

Edge = tuple[int, int, float]
"""Where a piece ends, its id, its score."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Pieces with their log-probabilities.

    Attributes:
        pieces: text of each id; an id whose text is empty is never found in a text (control, byte and unused pieces).
        scores: log-probability of each id. Their dtype is the one sums are rounded to: float32 as sentencepiece does,
            float64 as Hugging Face does, which decides between segmentations that are equally good. (Some
            twenty thousand pieces into one text sentencepiece 0.2.3 leaves these sums, by a rule not known here; there its
            cuts are close to those of float64.)
        unknown: id of a character that no piece covers.
        unknown_score: its score; sentencepiece's and Hugging Face's rule is the lowest score less 10.
        user_defined: ids whose score is made up so that hardly anything beats them: `best_score` times bytes, less 0.1.
        best_score: the best score of a normal piece, for them.
    """

    pieces: tuple[str, ...]
    scores: np.ndarray
    unknown: int
    unknown_score: float
    user_defined: frozenset[int] = frozenset()
    best_score: float = 0.0

    @cached_property
    def ids(self) -> dict[str, int]:
        """Piece -> id, the first of equal pieces."""
        return {piece: number for number, piece in reversed([*enumerate(self.pieces)]) if piece}

    @cached_property
    def prefixes(self) -> frozenset[str]:
        """Every beginning of every piece: what a trie has nodes for."""
        return frozenset(piece[:end] for piece in self.ids for end in range(1, len(piece) + 1))

    @cached_property
    def score_of(self) -> dict[str, float]:
        """Piece -> score."""
        return {
            piece: len(piece.encode()) * self.best_score - 0.1 if number in self.user_defined else float(self.scores[number])
            for piece, number in self.ids.items()
        }


def edges(vocabulary: Vocabulary, text: str, start: int, *, count: Callable[[], object] | None = None) -> list[Edge]:
    """The pieces that match the text at `start`, shortest first, and the unknown character if no single one does.

    `count` is called once for each step down the trie.
    """
    found: list[Edge] = []
    for end in range(start + 1, len(text) + 1):
        if count:
            count()
        piece = text[start:end]
        if piece not in vocabulary.prefixes:
            break
        if piece in vocabulary.ids:
            found.append((end, vocabulary.ids[piece], vocabulary.score_of[piece]))
    if not found or found[0][0] > start + 1:
        found.append((start + 1, vocabulary.unknown, vocabulary.unknown_score))
    return found


def viterbi(vocabulary: Vocabulary, text: str, *, count: Callable[[], object] | None = None) -> list[tuple[int, int, int]]:
    """Return the best segmentation as (start, end, id); of equal ones that whose last differing piece starts first.

    x* = argmax over segmentations x of sum_i log p(x_i)        (eq. 3)
    """
    rounded = vocabulary.scores.dtype.type
    best: list[Any] = [rounded(0.0), *[None] * len(text)]
    came_from: list[tuple[int, int]] = [(0, 0)] * (len(text) + 1)
    for start in range(len(text)):
        for end, number, score in edges(vocabulary, text, start, count=count):
            total = rounded(float(best[start]) + score)
            if best[end] is None or total > best[end]:
                best[end], came_from[end] = total, (start, number)
    found: list[tuple[int, int, int]] = []
    end = len(text)
    while end:
        start, number = came_from[end]
        found.append((start, end, number))
        end = start
    return found[::-1]


def tokenize(vocabulary: Vocabulary, text: str) -> list[int]:
    """Return the ids of the best segmentation of a text, each unknown character by itself (Kudo 2018, section 3.2).

    >>> tokenize(Vocabulary(("", "a", "b", "ab"), np.log([1, 0.3, 0.3, 0.4]), 0, -20.0), "abbx")
    [3, 2, 0]
    """
    return [number for _, _, number in viterbi(vocabulary, text)]


def forward_backward(vocabulary: Vocabulary, text: str, *, alpha: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Log of the summed probability, each to the power alpha, of all segmentations up to each place, and from each place."""
    n = len(text)
    before_S, after_S = np.full(n + 1, -np.inf), np.full(n + 1, -np.inf)
    before_S[0] = after_S[n] = 0.0
    for start in range(n):
        for end, _, score in edges(vocabulary, text, start):
            before_S[end] = np.logaddexp(before_S[end], before_S[start] + alpha * score)
    for start in range(n - 1, -1, -1):
        for end, _, score in edges(vocabulary, text, start):
            after_S[start] = np.logaddexp(after_S[start], alpha * score + after_S[end])
    return before_S, after_S


def log_probability(vocabulary: Vocabulary, text: str) -> float:
    """Log of the probability of a text, all its segmentations together (the marginal of eq. 4)."""
    return float(forward_backward(vocabulary, text)[0][-1])


def expected_counts(vocabulary: Vocabulary, counts: Mapping[str, int]) -> np.ndarray:
    """How often each id is expected in counted words, over all segmentations: the E-step; return counts_V."""
    expected_V = np.zeros(len(vocabulary.pieces))
    for word, times in counts.items():
        before_S, after_S = forward_backward(vocabulary, word)
        for start in range(len(word)):
            for end, number, score in edges(vocabulary, word, start):
                expected_V[number] += times * np.exp(before_S[start] + score + after_S[end] - before_S[-1])
    return expected_V


def nbest(vocabulary: Vocabulary, text: str, most: int) -> list[tuple[list[int], float]]:
    """Return the `most` best segmentations with their scores, best first: A* from the end, Viterbi scores as the estimate.

    Each is found by extending the most promising suffix; the estimate is exact, so no other suffix is ever taken up.
    """
    n = len(text)
    best_S = np.full(n + 1, -np.inf)
    best_S[0] = 0.0
    into: list[list[Edge]] = [[] for _ in range(n + 1)]
    for start in range(n):
        for end, number, score in edges(vocabulary, text, start):
            best_S[end] = max(best_S[end], best_S[start] + score)
            into[end].append((start, number, score))
    waiting: list[tuple[float, int, int, float, tuple[int, ...]]] = [(-best_S[n], 0, n, 0.0, ())]
    found: list[tuple[list[int], float]] = []
    made = 0
    while waiting and len(found) < most:
        _, _, place, score, suffix = heapq.heappop(waiting)
        if place == 0:
            found.append((list(suffix), score))
            continue
        for start, number, more in into[place]:
            made += 1
            promise = score + more + best_S[start]
            heapq.heappush(waiting, (-promise, made, start, score + more, (number, *suffix)))
    return found


def sample(vocabulary: Vocabulary, text: str, *, alpha: float, rng: np.random.Generator) -> list[int]:
    """Draw a segmentation with probability proportional to P(x)**alpha: filter forward, sample backward (section 3.3).

    alpha = 0 draws all segmentations alike, a large alpha the best one.
    """
    n = len(text)
    into: list[list[Edge]] = [[] for _ in range(n + 1)]
    for start in range(n):
        for end, number, score in edges(vocabulary, text, start):
            into[end].append((start, number, alpha * score))
    before_S, _ = forward_backward(vocabulary, text, alpha=alpha)
    ids: list[int] = []
    while n:
        logits_E = np.array([before_S[start] + score for start, _, score in into[n]])
        chosen = rng.choice(len(logits_E), p=np.exp(logits_E - before_S[n]))
        n, number, _ = into[n][chosen]
        ids.append(number)
    return ids[::-1]


def seeds(counts: Mapping[str, int], most: int, longest: int) -> dict[str, float]:
    """All characters, and of the substrings seen twice those with the highest count times length (section 3.2, step 1)."""
    found: Counter[str] = Counter()
    for word, times in counts.items():
        for start in range(len(word)):
            for end in range(start + 1, min(len(word), start + longest) + 1):
                found[word[start:end]] += times
    single = {piece: float(times) for piece, times in found.items() if len(piece) == 1}
    longer = [(times * len(piece), piece) for piece, times in found.items() if len(piece) > 1 and times > 1]
    longer.sort(key=lambda entry: (-entry[0], entry[1]))
    return single | {piece: float(weight) for weight, piece in longer[: max(0, most - len(single))]}


def expectation_maximization(vocabulary: Vocabulary, counts: Mapping[str, int]) -> Vocabulary:
    """One EM step: probabilities proportional to expected counts. The likelihood of the counted words never falls."""
    return _from_weights(
        {
            piece: max(weight, 1e-12)  # a piece that is never used keeps a score, and leaves by pruning alone
            for piece, weight in zip(vocabulary.pieces, expected_counts(vocabulary, counts))
            if piece
        }
    )


def _from_weights(weights: Mapping[str, float]) -> Vocabulary:
    scores_V = np.log([1.0, *(weight / sum(weights.values()) for weight in weights.values())])
    return Vocabulary(("", *weights), scores_V, 0, float(scores_V.min()) - 10.0)


def losses(vocabulary: Vocabulary, counts: Mapping[str, int]) -> dict[str, float]:
    """How much the likelihood of the best segmentations falls without each piece of several characters (section 3.2, 2b).

    A piece that is in the best segmentation of nothing costs nothing.
    """
    used: Counter[int] = Counter()
    for word, times in counts.items():
        for number in tokenize(vocabulary, word):
            used[number] += times
    fall: dict[str, float] = {}
    for piece, number in vocabulary.ids.items():
        if len(piece) > 1:
            instead = next((path, score) for path, score in nbest(vocabulary, piece, 2) if path != [number])
            fall[piece] = used[number] * (float(vocabulary.scores[number]) - instead[1])
    return fall


def train(
    counts: Mapping[str, int], vocab_size: int, *, keep: float = 0.8, em_steps: int = 2, seed_size: int = 1000, longest: int = 8
) -> Vocabulary:
    """Learn pieces from counted words: many seeds, then EM and dropping the cheapest until `vocab_size` are left.

    Id 0 is the unknown character. Single characters never leave, so every word can be segmented (section 3.2, steps 1 to 3).

    Raises:
        ValueError: less room than the unknown character and the characters need.
    """
    vocabulary = _from_weights(seeds(counts, seed_size, longest))
    characters = sum(len(piece) == 1 for piece in vocabulary.pieces)
    if vocab_size < 1 + characters:
        raise ValueError(f"vocab_size={vocab_size} has no room for the unknown one and {characters} characters")
    while True:
        for _ in range(em_steps):
            vocabulary = expectation_maximization(vocabulary, counts)
        if len(vocabulary.pieces) <= vocab_size:
            return vocabulary
        fall = losses(vocabulary, counts)
        room = max(vocab_size - 1 - characters, int(keep * len(fall)))
        kept = set(sorted(fall, key=lambda piece: (-fall[piece], piece))[:room])
        scores = vocabulary.score_of
        vocabulary = _from_weights(
            {piece: float(np.exp(scores[piece])) for piece in vocabulary.ids if len(piece) == 1 or piece in kept}
        )


def _scores(rng: np.random.Generator, count: int) -> np.ndarray:
    """Scores in sixteenths: sums are exact in any float, so ties are ties everywhere."""
    return -rng.integers(16, 200, count).astype(np.float32) / 16


def _vocabulary(rng: np.random.Generator, text: str, count: int) -> Vocabulary:
    starts, lengths = rng.integers(0, len(text), count), rng.integers(2, 9, count)
    cut = {text[start : start + length] for start, length in zip(starts, lengths)}
    characters = sorted(set(text))
    pieces = sorted({*characters[: len(characters) - 1], *(piece for piece in cut if piece.strip() == piece and piece)})
    scores_V = np.concatenate([[np.float32(0)], _scores(rng, len(pieces))])
    return Vocabulary(("", *pieces), scores_V, 0, float(scores_V.min()) - 10.0)


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    learned_from = zipf_words(rng, 60, distinct=30).replace(" ", "▁") + "aaaaaaaa"
    text = zipf_words(rng, int(rng.choice([0, 1, 30])), distinct=20).replace(" ", "▁") + str(rng.choice(["", "aaaaaaa", "Ω한"]))
    return {"vocabulary": _vocabulary(rng, learned_from, 120), "text": text}


def _timed(rng: np.random.Generator) -> dict[str, Any]:
    text = zipf_words(rng, 400_000, distinct=40_000).replace(" ", "▁")
    return {"vocabulary": _vocabulary(rng, text, 30_000), "text": text}


UNIGRAM = Procedure(
    reference=tokenize,
    examples=_examples,
    paper="arXiv:1804.10959",
    shapes={"encode 2 MB of made-up words, 30k pieces": _timed},
)


def piece_texts(vocabulary: Vocabulary, ids: Sequence[int]) -> list[str]:
    """The pieces of ids; the unknown character has none."""
    return [vocabulary.pieces[number] for number in ids]
