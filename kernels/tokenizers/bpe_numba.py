"""Character BPE on one core: training keeps counts and places of pairs up to date, words already segmented are remembered.

Training: the corpus is one linked list of symbols per word; each pair has its count and the places where it came to be; a
merge visits those places alone.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
from numba import njit

from llmlab.kernels.tokenizers._merging_numba import LONGEST_KEPT, find, merge, pair_table, remember, word_memory
from llmlab.kernels.twin import twin
from llmlab.reference.tokenizers.bpe import BPE, END_OF_WORD, UNKNOWN


@twin(BPE, backend="numba", dtypes=("float64",))
def learn_and_segment(corpus: str, vocab_size: int, text: str) -> tuple[tuple[str, ...], list[int]]:
    counted = Counter(corpus.split())
    symbols = [UNKNOWN, *sorted(set().union(*counted)), END_OF_WORD]
    if vocab_size < len(symbols):
        raise ValueError(f"vocab_size={vocab_size} has no room for {len(symbols)} symbols the corpus starts with")
    end, number_of = len(symbols) - 1, np.zeros(0x110000, np.int32)
    number_of[[ord(character) for character in symbols[1:end]]] = np.arange(1, end)
    points = np.frombuffer("".join(counted).encode("utf-32-le"), np.uint32)
    lengths, weights = np.array([*map(len, counted)], np.int64), np.array([*counted.values()], np.int64)
    words = np.insert(number_of[points], np.cumsum(lengths), end)  # the end of a word is a symbol of its own
    merges = learn_merges(words.astype(np.int32), lengths + 1, weights, len(symbols), vocab_size, _spelling(symbols))
    pairs = {}
    for rank, (left, right, made) in enumerate(merges.tolist()):
        if made == len(symbols):
            symbols.append(symbols[left] + symbols[right])
        pairs[left, right] = rank, made
    return tuple(symbols), _encode(text, number_of, end, pairs)


def _spelling(symbols: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The code points of all symbols but the unknown one, and where each starts."""
    spelled = ["", *symbols[1:]]
    starts = np.cumsum([0, *map(len, spelled)])
    return np.frombuffer("".join(spelled).encode("utf-32-le"), np.uint32).astype(np.int64), starts


def _encode(text: str, number_of: np.ndarray, end: int, pairs: dict[tuple[int, int], tuple[int, int]]) -> list[int]:
    data = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    out = np.empty(2 * data.size + 1, np.int32)
    room = min(1 << 17, data.size + 1)
    return out[: _segment(data, white_space(), number_of, end, *pair_table(pairs), *word_memory({}, room), out)].tolist()


@cache
def white_space() -> np.ndarray:
    """Whether each code point is what `str.split` splits at; none lies beyond U+3000."""
    return np.array([chr(point).isspace() for point in range(0x3001)])


@njit(cache=True)
def _segment(data, spaces, number_of, end, keys, ranks, merged, table, arena, kept_ids, state, out):
    count, place, n = 0, 0, data.size
    while place < n:
        start, size = place, 0
        while place < n:  # to the end of the word, its characters' ids written where the word's ids will stand
            point, width = _point(data, place)
            if point < spaces.size and spaces[point]:
                break
            out[count + size] = number_of[point]
            size += 1
            place += width
        if size:
            slot, length = -1, place - start
            if length <= LONGEST_KEPT:
                slot = find(data, start, length, table, arena)
            if slot >= 0 and table[slot, 0] >= 0:
                size = table[slot, 3]
                out[count : count + size] = kept_ids[table[slot, 2] : table[slot, 2] + size]
            else:
                out[count + size] = end
                size = merge(out[count : count + size + 1], size + 1, keys, ranks, merged)
                if slot >= 0:
                    remember(data, start, length, out[count : count + size], slot, table, arena, kept_ids, state)
            count += size
        else:
            place += width
    return count


@njit(cache=True)
def _point(data, i):
    """Code point and byte length of the character at i."""
    lead = np.int64(data[i])
    if lead < 0x80:
        return lead, 1
    if lead < 0xE0:
        return (lead & 0x1F) << 6 | np.int64(data[i + 1] & 0x3F), 2
    if lead < 0xF0:
        return (lead & 0xF) << 12 | np.int64(data[i + 1] & 0x3F) << 6 | np.int64(data[i + 2] & 0x3F), 3
    high = (lead & 7) << 18 | np.int64(data[i + 1] & 0x3F) << 12
    return high | np.int64(data[i + 2] & 0x3F) << 6 | np.int64(data[i + 3] & 0x3F), 4


def learn_merges(
    words: np.ndarray,
    lengths: np.ndarray,
    weights: np.ndarray,
    num_symbols: int,
    vocab_size: int,
    spelling: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """`reference.tokenizers.bpe.learn_merges` over words written one after the other; rows (left, right, made).

    `spelling` tells which merges make the same text: the letters of every symbol one after the other, and their starts.
    """
    total = int(words.size)
    nexts, previous = np.arange(1, total + 1, dtype=np.int32), np.arange(-1, total - 1, dtype=np.int32)
    ends = np.cumsum(lengths)
    nexts[ends - 1] = -1
    previous[ends - lengths] = -1
    return _learn(words, nexts, previous, np.repeat(weights, lengths), num_symbols, vocab_size, *spelling)


@njit(cache=True)
def _pair_of(key, slots, keys, size):
    """The number of a pair, a new one at the end where it has none; the slot table is at most half full."""
    slot = np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)) & (slots.size - 1)
    while slots[slot] >= 0 and keys[slots[slot]] != key:
        slot = (slot + 1) & (slots.size - 1)
    if slots[slot] < 0:
        slots[slot] = size
    return slots[slot]


@njit(cache=True)
def _longer(array, size):
    grown = np.empty(size, array.dtype)
    grown[: array.size] = array
    return grown


@njit(cache=True)
def _text_slot(number, letters, starts, known):
    """Where the text of a symbol stands among the texts known, or belongs."""
    start, end = starts[number], starts[number + 1]
    code = np.uint64(14695981039346656037)
    for i in range(start, end):
        code = (code ^ np.uint64(letters[i])) * np.uint64(1099511628211)
    slot = np.int64((code ^ (code >> np.uint64(29))) & np.uint64(known.size - 1))
    while known[slot] >= 0:
        other = starts[known[slot]]
        if starts[known[slot] + 1] - other == end - start:
            same = True
            for i in range(end - start):
                if letters[other + i] != letters[start + i]:
                    same = False
                    break
            if same:
                break
        slot = (slot + 1) & (known.size - 1)
    return slot


@njit(cache=True)
def _made(left, right, size, letters, starts, known):
    """The symbol that has the text of two joined; `size`, the next one, where none has it yet."""
    place = starts[size]
    for part in (left, right):
        for i in range(starts[part], starts[part + 1]):
            letters[place] = letters[i]
            place += 1
    starts[size + 1] = place
    slot = _text_slot(size, letters, starts, known)
    if known[slot] < 0:
        known[slot] = size
    return known[slot]


@njit(cache=True)
def _before(count, key, other_count, other_key):
    return count > other_count or (count == other_count and key < other_key)


@njit(cache=True)
def _push(heap, size, count, key):
    """Add (count, key) to a heap whose first has the largest count, then the lowest key."""
    place = size
    while place and _before(count, key, heap[(place - 1) >> 1, 0], heap[(place - 1) >> 1, 1]):
        heap[place, 0], heap[place, 1] = heap[(place - 1) >> 1, 0], heap[(place - 1) >> 1, 1]
        place = (place - 1) >> 1
    heap[place, 0], heap[place, 1] = count, key


@njit(cache=True)
def _pop(heap, size):
    """Take the first of a heap of `size` away; it then has one less."""
    count, key = heap[size - 1, 0], heap[size - 1, 1]
    place, child = 0, 1
    while child < size - 1:
        if child + 1 < size - 1 and _before(heap[child + 1, 0], heap[child + 1, 1], heap[child, 0], heap[child, 1]):
            child += 1
        if not _before(heap[child, 0], heap[child, 1], count, key):
            break
        heap[place, 0], heap[place, 1] = heap[child, 0], heap[child, 1]
        place, child = child, 2 * child + 1
    heap[place, 0], heap[place, 1] = count, key


@njit(cache=True)
def _learn(symbol, nexts, previous, weight, num_symbols, vocab_size, letters, given_starts):
    capacity = max(1024, 1 << int(np.log2(symbol.size + 1) + 1))
    slots = np.full(2 * capacity, -1, np.int32)
    keys, counts = np.empty(capacity, np.int64), np.zeros(capacity, np.int64)
    latest, stamp = np.full(capacity, -1, np.int32), np.full(capacity, -1, np.int32)
    place_of, earlier = np.empty(2 * symbol.size + 16, np.int32), np.empty(2 * symbol.size + 16, np.int32)
    pairs, entries = 0, 0
    for i in range(symbol.size):
        if nexts[i] >= 0:
            key = np.int64(symbol[i]) << 32 | symbol[nexts[i]]
            pair = _pair_of(key, slots, keys, pairs)
            if pair == pairs:
                keys[pair] = key
                pairs += 1
            counts[pair] += weight[i]
            place_of[entries], earlier[entries], latest[pair] = i, latest[pair], entries
            entries += 1
    heap, waiting = np.empty((2 * pairs + 16, 2), np.int64), 0
    for pair in range(pairs):
        _push(heap, waiting, counts[pair], keys[pair])
        waiting += 1

    starts = np.zeros(vocab_size + 2, np.int64)
    starts[: given_starts.size] = given_starts
    known = np.full(1 << int(np.log2(vocab_size + 1) + 2), -1, np.int32)
    letters = _longer(letters, max(64, 4 * letters.size))
    for number in range(1, num_symbols):
        known[_text_slot(number, letters, starts, known)] = number

    size, rank = num_symbols, 0
    merges, changed = np.empty((256, 3), np.int32), np.empty(capacity, np.int32)
    while waiting and size < vocab_size:
        count, key = heap[0, 0], heap[0, 1]
        _pop(heap, waiting)
        waiting -= 1
        pair = _pair_of(key, slots, keys, pairs)
        if counts[pair] != count:  # it has become rarer since
            if counts[pair] > 0:
                _push(heap, waiting, counts[pair], key)
                waiting += 1
            continue
        left, right = np.int32(key >> 32), np.int32(key & 0xFFFFFFFF)
        needed = starts[size] + starts[left + 1] - starts[left] + starts[right + 1] - starts[right]
        if needed > letters.size:
            letters = _longer(letters, 2 * needed)
        made = np.int32(_made(left, right, size, letters, starts, known))
        if made == size:
            size += 1
        if rank == len(merges):
            grown = np.empty((2 * rank, 3), np.int32)
            grown[:rank] = merges
            merges = grown
        merges[rank, 0], merges[rank, 1], merges[rank, 2] = left, right, made

        num_changed, entry, latest[pair] = 0, latest[pair], -1
        while entry >= 0:
            place = place_of[entry]
            entry = earlier[entry]
            if left == right and symbol[place] == left:  # a run is joined two by two from its start
                while previous[place] >= 0 and symbol[previous[place]] == left:
                    place = previous[place]
            while place >= 0:
                after = nexts[place]
                if symbol[place] != left or after < 0 or symbol[after] != right:
                    break
                w, before, beyond = weight[place], previous[place], nexts[after]
                if before >= 0:
                    counts[_pair_of(np.int64(symbol[before]) << 32 | left, slots, keys, pairs)] -= w
                if beyond >= 0:
                    counts[_pair_of(np.int64(right) << 32 | symbol[beyond], slots, keys, pairs)] -= w
                    previous[beyond] = place
                symbol[place], symbol[after], nexts[place] = made, -1, beyond
                if entries + 2 > place_of.size:
                    place_of, earlier = _longer(place_of, 2 * entries), _longer(earlier, 2 * entries)
                if pairs + 2 > capacity:
                    capacity *= 2
                    slots = np.full(2 * capacity, -1, np.int32)
                    for i in range(pairs):
                        _pair_of(keys[i], slots, keys, i)
                    keys, counts, changed = _longer(keys, capacity), _longer(counts, capacity), _longer(changed, capacity)
                    latest, stamp = _longer(latest, capacity), _longer(stamp, capacity)
                for one in (np.int64(before), np.int64(place)):
                    if one < 0 or nexts[one] < 0:
                        continue
                    key = np.int64(symbol[one]) << 32 | symbol[nexts[one]]
                    new = _pair_of(key, slots, keys, pairs)
                    if new == pairs:
                        keys[new], counts[new], latest[new], stamp[new] = key, 0, -1, -1
                        pairs += 1
                    counts[new] += w
                    place_of[entries], earlier[entries], latest[new] = one, latest[new], entries
                    entries += 1
                    if stamp[new] != rank:
                        stamp[new] = rank
                        changed[num_changed] = new
                        num_changed += 1
                place = beyond if left == right else -1
        counts[pair] = 0
        if waiting + num_changed + 1 > len(heap):
            grown = np.empty((2 * (waiting + num_changed + 1), 2), np.int64)
            grown[:waiting] = heap[:waiting]
            heap = grown
        for i in range(num_changed):
            if counts[changed[i]] > 0:
                _push(heap, waiting, counts[changed[i]], keys[changed[i]])
                waiting += 1
        rank += 1
    return merges[:rank]
