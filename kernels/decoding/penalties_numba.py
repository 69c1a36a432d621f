"""Penalties on CPU cores: rows in parallel; only the text's own tokens are touched after one copy of the logits."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from llmlab.kernels.twin import twin
from llmlab.reference.decoding.penalties import PENALTIES, require_penalties


@twin(PENALTIES, backend="numba")
def penalties(
    logits_BV: np.ndarray,
    prompt_BP: np.ndarray,
    output_BS: np.ndarray,
    *,
    repetition: float = 1.0,
    frequency: float = 0.0,
    presence: float = 0.0,
    no_repeat_ngram: int = 0,
) -> np.ndarray:
    require_penalties(repetition, frequency, presence, no_repeat_ngram)
    V = logits_BV.shape[1]
    text_BS = np.concatenate([prompt_BP, output_BS], axis=1)
    if text_BS.size and not -1 <= text_BS.min() <= text_BS.max() < V:
        raise ValueError(f"token ids {text_BS.min()}..{text_BS.max()} outside -1..{V - 1}")
    out_BV = np.array(logits_BV, order="C")
    amounts = np.array([repetition, frequency, presence], logits_BV.dtype)
    _rows(out_BV, text_BS, prompt_BP.shape[1], amounts, no_repeat_ngram)
    return out_BV


@njit(parallel=True, error_model="numpy", cache=True)
def _rows(out_BV, text_BS, prompt_tokens, amounts, ngram):
    for b in prange(len(out_BV)):
        _row(out_BV[b], text_BS[b], prompt_tokens, amounts, ngram)


@njit(error_model="numpy", cache=True)
def _row(out, padded, prompt_tokens, amounts, ngram):
    repetition, frequency, presence = amounts
    one = out.dtype.type(1)
    generated = np.sort(padded[prompt_tokens:])
    first = 0
    while first < generated.size:  # runs of equal tokens, so that a count needs no vocabulary-sized array
        token, last = generated[first], first
        while last < generated.size and generated[last] == token:
            last += 1
        if token >= 0:
            if repetition != one:
                out[token] = out[token] / repetition if out[token] > 0 else out[token] * repetition
            out[token] -= frequency * out.dtype.type(last - first)
            out[token] -= presence
        first = last
    if repetition != one:
        before = out.dtype.type(0)
        prompt = np.sort(padded[:prompt_tokens])
        for place in range(prompt.size):
            token = prompt[place]
            new = place == 0 or prompt[place - 1] != token
            found = np.searchsorted(generated, token)
            if token >= 0 and new and not (found < generated.size and generated[found] == token):
                before = out[token]
                out[token] = before / repetition if before > 0 else before * repetition
    if ngram > 0:
        _no_repeat(out, padded[padded >= 0], ngram)


@njit(error_model="numpy")
def _no_repeat(out, text, ngram):
    stem = text.size - ngram + 1
    for start in range(text.size - ngram + 1):
        same = True
        for place in range(ngram - 1):
            if text[start + place] != text[stem + place]:
                same = False
                break
        if same:
            out[text[start + ngram - 1]] = -np.inf
