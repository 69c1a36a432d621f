"""Character byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909, section 3.2 and algorithm 1).

Words are what lies between white space. A word is its characters and an end-of-word sign; the most frequent adjacent pair of
the whole corpus is joined into a new symbol, again and again. Text is segmented by the same joins in the same order.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from llmlab.reference.op import Procedure

Pairs = Mapping[tuple[int, int], tuple[int, int]]
"""(left id, right id) -> (rank, id of the merged token)."""
Symbol = TypeVar("Symbol", str, bytes)

UNKNOWN, END_OF_WORD = "<unk>", "</w>"


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Symbols by id: `<unk>`, the characters seen in training in their order, `</w>`, then what merges made.

    Attributes:
        symbols: the text of each id. A symbol at the end of a word ends in `</w>`.
        pairs: which adjacent symbols merge, in which order, into what.
    """

    symbols: tuple[str, ...]
    pairs: Pairs

    @cached_property
    def ids(self) -> dict[str, int]:
        """Symbol -> id, `<unk>` left out."""
        return {symbol: number for number, symbol in enumerate(self.symbols) if number}


def merge(pairs: Pairs, ids: Sequence[int], *, count: Callable[[], object] | None = None) -> list[int]:
    """Merge the lowest-ranked adjacent pair, the leftmost of equals, until none is left, in O(n log n).

    `count` is called once for each look at a pair.

    >>> merge({(0, 0): (0, 2), (2, 1): (1, 3)}, [0, 0, 0, 1])  # the left 0 0 merges first and leaves 1 nothing to merge with
    [2, 0, 1]
    """
    n = len(ids)
    token, following, previous = list(ids), list(range(1, n + 1)), list(range(-1, n - 1))
    heap = [(pairs[pair][0], left, pair) for left, pair in enumerate(pairwise(token)) if pair in pairs]
    heapq.heapify(heap)
    while heap:
        _, left, pair = heapq.heappop(heap)
        if count:
            count()
        right = following[left]
        if right >= n or (token[left], token[right]) != pair:
            continue  # one of the two has merged with another since
        token[left], token[right] = pairs[pair][1], -1
        following[left] = after = following[right]
        if after < n:
            previous[after] = left
        for one, other in ((previous[left], left), (left, after)):
            if one >= 0 and other < n and (new := (token[one], token[other])) in pairs:
                heapq.heappush(heap, (pairs[new][0], one, new))
    return [number for number in token if number >= 0]


def learn_merges(
    words: Mapping[tuple[int, ...], int], symbols: list[Symbol], vocab_size: int, reserved: int = 0
) -> list[tuple[int, int, int]]:
    """Join the most frequent adjacent pair of counted words until `symbols`, which grows, has `vocab_size` entries.

    Return (left id, right id, id of what they make) in order. Of equally frequent pairs the lowest (left id, right id) is
    joined. Two merges that make the same text make the same symbol; the first `reserved` symbols are never made. A pair is
    counted at every place, overlapping ones included. Only words that hold the pair are looked at again.
    """
    spelled, weights = [list(word) for word in words], list(words.values())
    number_of = {symbol: number for number, symbol in enumerate(symbols) if number >= reserved}
    counts: Counter[tuple[int, int]] = Counter()
    where: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for index, word in enumerate(spelled):
        for pair in pairwise(word):
            counts[pair] += weights[index]
            where[pair].add(index)
    heap: list[tuple[int, tuple[int, int]]] = [(-count, one) for one, count in counts.items()]
    heapq.heapify(heap)
    merges: list[tuple[int, int, int]] = []
    while heap and len(symbols) < vocab_size:
        negative, pair = heapq.heappop(heap)
        if counts[pair] != -negative:
            if counts[pair] > 0:
                heapq.heappush(heap, (-counts[pair], pair))
            continue
        joined = symbols[pair[0]] + symbols[pair[1]]
        made = number_of.setdefault(joined, len(symbols))
        if made == len(symbols):
            symbols.append(joined)
        merges.append((pair[0], pair[1], made))
        changed: set[tuple[int, int]] = set()
        for index in where.pop(pair):
            old, new = spelled[index], _joined(spelled[index], pair, made)
            spelled[index] = new
            for one in pairwise(old):
                counts[one] -= weights[index]
            for one in pairwise(new):
                counts[one] += weights[index]
                if made in one:
                    where[one].add(index)
                    changed.add(one)
        del counts[pair]
        for one in changed:
            heapq.heappush(heap, (-counts[one], one))
    return merges


def _joined(word: Sequence[int], pair: tuple[int, int], number: int) -> list[int]:
    out: list[int] = []
    place = 0
    while place < len(word):
        if place + 1 < len(word) and (word[place], word[place + 1]) == pair:
            out.append(number)
            place += 2
        else:
            out.append(word[place])
            place += 1
    return out


def train(corpus: str, vocab_size: int) -> Vocabulary:
    """Learn a vocabulary of at most `vocab_size` symbols from the words of a corpus (algorithm 1).

    Raises:
        ValueError: less room than `<unk>`, the characters and `</w>` need.

    >>> train("low low lower", 9).symbols[7:]  # l o and o w are equally frequent; l has the lower id
    ('lo', 'low')
    """
    counted = Counter(corpus.split())
    symbols = [UNKNOWN, *sorted({character for word in counted for character in word}), END_OF_WORD]
    if vocab_size < len(symbols):
        raise ValueError(f"vocab_size={vocab_size} has no room for {len(symbols)} symbols the corpus starts with")
    number_of = {symbol: number for number, symbol in enumerate(symbols) if number}
    words = {(*(number_of[character] for character in word), number_of[END_OF_WORD]): count for word, count in counted.items()}
    merges = learn_merges(words, symbols, vocab_size, reserved=1)
    return Vocabulary(tuple(symbols), {(left, right): (rank, made) for rank, (left, right, made) in enumerate(merges)})


def encode(vocabulary: Vocabulary, text: str) -> list[int]:
    """Return the ids of a text: each word by itself; a character never seen in training is `<unk>`, id 0.

    >>> encode(train("low low lower", 9), "lo low x")
    [7, 6, 8, 6, 0, 6]
    """
    ids: list[int] = []
    known: dict[str, list[int]] = {}
    end = vocabulary.ids[END_OF_WORD]
    for word in text.split():
        if word not in known:
            known[word] = merge(vocabulary.pairs, [*(vocabulary.ids.get(character, 0) for character in word), end])
        ids += known[word]
    return ids


def decode(vocabulary: Vocabulary, ids: Iterable[int]) -> str:
    """Return the text of ids, one space between words.

    Raises:
        ValueError: an id that no symbol has.

    >>> decode(train("low low lower", 9), [7, 6, 8, 6])
    'lo low'
    """
    symbols = vocabulary.symbols
    numbers = list(ids)
    if wrong := [number for number in numbers if not 0 <= number < len(symbols)]:
        raise ValueError(f"id={wrong[0]}: the vocabulary has ids 0 to {len(symbols) - 1}")
    return "".join(symbols[number] for number in numbers).replace(END_OF_WORD, " ").removesuffix(" ")


def learn_and_segment(corpus: str, vocab_size: int, text: str) -> tuple[tuple[str, ...], list[int]]:
    """Learn a vocabulary from a corpus, encode a text with it; return the symbols in order of id, and the text's ids.

    Sennrich et al. 2016, algorithm 1 and section 3.2.

    >>> learn_and_segment("low low lower", 9, "low")
    (('<unk>', 'e', 'l', 'o', 'r', 'w', '</w>', 'lo', 'low'), [8, 6])
    """
    learned = train(corpus, vocab_size)
    return learned.symbols, encode(learned, text)


_LETTERS = np.array(list("etaoinshrdlcumwfgypbvkxjqzßéłя世界🤖"))


def zipf_words(rng: np.random.Generator, count: int, *, distinct: int = 5000) -> str:
    """Made-up words that repeat as words do: the r-th most frequent about 1/r as often as the first."""
    weights = 1 / np.arange(1, len(_LETTERS) + 1) ** 0.8
    lexicon = [
        "".join(rng.choice(_LETTERS, length, p=weights / weights.sum())) for length in rng.integers(1, 12, max(1, distinct))
    ]
    frequency = 1 / np.arange(1, len(lexicon) + 1)
    return " ".join(np.array(lexicon)[rng.choice(len(lexicon), count, p=frequency / frequency.sum())])


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    corpus = zipf_words(rng, int(rng.choice([1, 30, 300])), distinct=60)
    text = zipf_words(rng, int(rng.choice([0, 1, 40])), distinct=60) + rng.choice(["", " aaaaaa aaa", "\tZ é"])
    return {"corpus": corpus, "vocab_size": len(set(corpus)) + 2 + int(rng.integers(0, 80)), "text": text}


def _training(rng: np.random.Generator) -> dict[str, Any]:
    return {"corpus": zipf_words(rng, 400_000, distinct=40_000), "vocab_size": 8000, "text": ""}


def _encoding(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "corpus": zipf_words(rng, 5_000, distinct=1_000),
        "vocab_size": 600,
        "text": zipf_words(rng, 400_000, distinct=40_000),
    }


BPE = Procedure(
    reference=learn_and_segment,
    examples=_examples,
    paper="arXiv:1508.07909",
    shapes={"train 8k symbols on 2 MB of made-up words": _training, "encode 2 MB of made-up words, 600 symbols": _encoding},
)
