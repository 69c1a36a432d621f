"""WordPiece (Schuster and Nakajima 2012, Japanese and Korean Voice Search, section 2; pieces written as BERT does).

Training adds, again and again, the joined unit that raises the likelihood of the training data the most under a language
model of the units; the model here is the unigram one. Encoding takes the longest piece that fits, from the left (Wu et al.
2016, arXiv:1609.08144, section 4.1). A piece that continues a word starts with "##".
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import log
from typing import Any

import numpy as np

from llmlab.reference.op import Procedure
from llmlab.reference.tokenizers.bpe import zipf_words
from llmlab.reference.tokenizers.pretokenize import bert, bert_normalize

UNKNOWN, CONTINUES = "[UNK]", "##"


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A WordPiece vocabulary.

    Attributes:
        ids: piece -> id; "##" marks pieces that continue a word.
        unknown: the piece for a word that cannot be put together.
        longest_word: characters of a word above which it is unknown without a look.
        lowercase: whether texts are lowered and lose their accents.
    """

    ids: Mapping[str, int]
    unknown: str = UNKNOWN
    longest_word: int = 100
    lowercase: bool = True

    @cached_property
    def longest_piece(self) -> int:
        """Characters of the longest piece, "##" included."""
        return max(map(len, self.ids))

    @cached_property
    def pieces(self) -> dict[int, str]:
        """Id -> piece."""
        return {number: piece for piece, number in self.ids.items()}


def split_word(vocabulary: Vocabulary, word: str, *, count: Callable[[], object] | None = None) -> list[int]:
    """Return the ids of one word: the longest piece that starts it, then the longest "##" piece that goes on, to its end.

    If at some place nothing fits, the whole word is unknown. `count` is called once for each look-up.

    >>> split_word(Vocabulary({"[UNK]": 0, "un": 1, "##able": 2, "##a": 3}), "unable")
    [1, 2]
    """
    unknown = [vocabulary.ids[vocabulary.unknown]]
    if len(word) > vocabulary.longest_word:
        return unknown
    found: list[int] = []
    start = 0
    while start < len(word):
        mark = CONTINUES if start else ""
        for end in range(min(len(word), start + vocabulary.longest_piece), start, -1):
            if count:
                count()
            if (piece := mark + word[start:end]) in vocabulary.ids:
                found.append(vocabulary.ids[piece])
                start = end
                break
        else:
            return unknown
    return found


def tokenize(vocabulary: Vocabulary, text: str) -> list[int]:
    """Return the ids of a text, normalized and cut into words as BERT does (Devlin et al. 2018).

    >>> tokenize(Vocabulary({"[UNK]": 0, "un": 1, "##able": 2, "!": 3}), "Unable! x")
    [1, 2, 3, 0]
    """
    known: dict[str, list[int]] = {}
    ids: list[int] = []
    for word in bert(bert_normalize(text, lowercase=vocabulary.lowercase)):
        if word not in known:
            known[word] = split_word(vocabulary, word)
        ids += known[word]
    return ids


def decode(vocabulary: Vocabulary, ids: Iterable[int]) -> str:
    """Return the words of ids with one space between them; accents, case and spacing of the text are gone.

    Raises:
        ValueError: an id that no piece has.
    """
    try:
        return " ".join(vocabulary.pieces[number] for number in ids).replace(f" {CONTINUES}", "")
    except KeyError as error:
        raise ValueError(f"id={error.args[0]}: no piece of the vocabulary") from None


def log_likelihood(units: Mapping[str, int]) -> float:
    """The log-likelihood of a corpus under the unigram model of its own unit counts: sum of n log(n / N).

    >>> log_likelihood({"a": 2, "##b": 0})
    0.0
    """
    total = sum(units.values())
    return sum(count * log(count / total) for count in units.values() if count)


def gain(pair: int, left: int, right: int, total: int, *, same: bool) -> float:
    """How much joining a pair that occurs `pair` times raises the log-likelihood, from the counts alone.

    With f(n) = n log n and the counts n' after the join,

        f(pair) + f(left') + f(right') - f(total') - f(left) - f(right) + f(total),

    left' = left - pair, right' = right - pair, total' = total - pair; a unit joined with itself (`same`) loses 2 pair. For rare
    units it is near pair log(pair total / (left right)): a pair counts for more than chance, not for more than others.
    """

    def f(count: int) -> float:
        return count * log(count) if count else 0.0

    if same:
        return f(pair) + f(left - 2 * pair) - f(left) - f(total - pair) + f(total)
    return f(pair) + (f(left - pair) + f(right - pair)) - (f(left) + f(right)) - f(total - pair) + f(total)


def train(
    counts: Mapping[str, int], vocab_size: int, *, special: Iterable[str] = ("[PAD]", UNKNOWN), threshold: float = 0.0
) -> Vocabulary:
    """Learn pieces from counted words until there are `vocab_size`, or no join raises the likelihood by over `threshold`.

    It starts from the characters, each as the start of a word and as what continues one where it occurs so. Of joins that
    gain the same, to a billionth, the one whose pieces have the lowest ids is taken. Ids: special, characters, joins.

    Raises:
        ValueError: less room than the special pieces and the characters need.

    >>> [*train({"ab": 3, "cb": 1}, 7).ids]
    ['[PAD]', '[UNK]', '##b', 'a', 'c', 'ab', 'cb']
    """
    spelled = [[character if not place else CONTINUES + character for place, character in enumerate(word)] for word in counts]
    weights = list(counts.values())
    pieces = [*special, *sorted({unit for word in spelled for unit in word})]
    if vocab_size < len(pieces):
        raise ValueError(f"vocab_size={vocab_size} has no room for {len(pieces)} special pieces and characters")
    ids = {piece: number for number, piece in enumerate(pieces)}
    units: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    where: defaultdict[tuple[str, str], set[int]] = defaultdict(set)

    def tally(index: int, sign: int) -> None:
        for unit in spelled[index]:
            units[unit] += sign * weights[index]
        for pair, times in _pairs(spelled[index]).items():
            pairs[pair] += sign * weights[index] * times
            where[pair].add(index)

    for index in range(len(spelled)):
        tally(index, 1)
    while len(ids) < vocab_size:
        total = sum(units.values())
        gains = {
            pair: gain(times, units[pair[0]], units[pair[1]], total, same=pair[0] == pair[1])
            for pair, times in pairs.items()
            if times
        }
        best = min(gains, key=lambda pair: (-round(gains[pair], 9), ids[pair[0]], ids[pair[1]]), default=None)
        if best is None or gains[best] <= threshold:
            break
        ids.setdefault(best[0] + best[1].removeprefix(CONTINUES), len(ids))
        for index in where.pop(best):
            tally(index, -1)
            spelled[index] = _joined(spelled[index], best)
            tally(index, 1)
    return Vocabulary(ids)


def _pairs(word: list[str]) -> Counter[tuple[str, str]]:
    """How often each pair would be joined: a run of n equal units holds n // 2 of their pair."""
    found: Counter[tuple[str, str]] = Counter()
    taken = False
    for left, right in pairwise(word):
        taken = left == right and not taken
        if left != right or taken:
            found[left, right] += 1
    return found


def _joined(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for unit in word:
        if out and (out[-1], unit) == pair:
            out[-1] += unit.removeprefix(CONTINUES)
        else:
            out.append(unit)
    return out


_TEXT = ("Unaffable", "naïve", "世界", "don't", "x" * 101, "\u200b", "Ω", "...", "\t", "ing", "ȘTRAẞE", "\u0301", "é", "한글")


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    corpus = bert(bert_normalize(zipf_words(rng, 80, distinct=40)))
    learned = train(Counter(corpus), int(rng.integers(120, 180)))
    words = [*zipf_words(rng, int(rng.choice([0, 1, 60])), distinct=40).split(), *rng.choice(_TEXT, 3)]
    lowercase = bool(rng.integers(2))
    return {"vocabulary": Vocabulary(learned.ids, lowercase=lowercase), "text": " ".join(rng.permutation(words))}


def _timed(rng: np.random.Generator) -> dict[str, Any]:
    words = zipf_words(rng, 400_000, distinct=40_000)
    pieces = {piece for word in words.split()[:40_000] for end in (1, 2, 3, 5, 8) for piece in (word[:end], "##" + word[1:end])}
    return {"vocabulary": Vocabulary({piece: number for number, piece in enumerate([UNKNOWN, *sorted(pieces)])}), "text": words}


WORDPIECE = Procedure(
    reference=tokenize,
    examples=_examples,
    paper="Schuster and Nakajima 2012, doi:10.1109/ICASSP.2012.6289079; arXiv:1609.08144",
    shapes={"encode 2 MB of made-up words": _timed},
)
