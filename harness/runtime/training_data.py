"""What the trainer reads: real text as numbers, cut into microbatches in an order that is a function of the seed alone.

A token is a byte of the text, numbered among the bytes that occur in it. Axes: M microbatch of the whole step, B sequence of
one microbatch, T token.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from llmlab.reference.errors import InputError

TEXT = Path(__file__).with_name("training_text.txt")


@lru_cache(maxsize=8)
def read_text(path: Path = TEXT) -> tuple[np.ndarray, bytes]:
    """Return the text as token ids, and the byte that each id stands for.

    Raises:
        InputError: the file cannot be read, or is empty.

    >>> ids, alphabet = read_text()
    >>> bytes(alphabet[i] for i in ids[:9])
    b'a machine'
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(path, "", Path(path).name, f"cannot be read: {error.strerror}") from None
    if not content:
        raise InputError(path, "", Path(path).name, "is empty")
    alphabet, ids = np.unique(np.frombuffer(content, dtype=np.uint8), return_inverse=True)
    return ids.astype(np.int64), alphabet.tobytes()


def microbatches(
    *, seed: int, step: int, num_microbatches: int, microbatch: int, sequence: int, vocab_size: int, path: Path = TEXT
) -> tuple[np.ndarray, np.ndarray]:
    """Return ids_MBT and the tokens that follow them, target_MBT, of one step; ranks take theirs out of the whole.

    Raises:
        InputError: the text has more different bytes than the vocabulary, or fewer bytes than a sequence.
    """
    ids, alphabet = read_text(path)
    if len(alphabet) > vocab_size:
        raise InputError(path, "vocab_size", vocab_size, f"the text has {len(alphabet)} different bytes")
    if len(ids) <= sequence:
        raise InputError(path, "sequence", sequence, f"the text has only {len(ids)} bytes")
    rng = np.random.default_rng([seed, 1, step])
    start_MB1 = rng.integers(len(ids) - sequence, size=(num_microbatches, microbatch, 1))
    place_MBT = start_MB1 + np.arange(sequence)
    return ids[place_MBT], ids[place_MBT + 1]
