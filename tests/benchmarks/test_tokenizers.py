"""Encoding, training and sampling beside the libraries people use, on the same texts and vocabularies.

`pytest --benchmark -k beside`. Every case first shows that the answers are the same; a library's preparation (its own tables)
is made outside the timing. Hugging Face is timed by `encode_batch_fast` over documents of about 10 kB, its quickest way, on all
cores; the rest is one text on one core. Real vocabularies are used where LLMLAB_DATA names them.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.speed

DATA = Path(os.environ.get("LLMLAB_DATA", "")) / "tokenizers"
LLAMA3 = DATA / "llama3" / "tokenizer.model"
DOCUMENT = 10_000


def documents(text: str) -> list[str]:
    """The text cut after words, so that every way of encoding it gives the same ids."""
    cuts, start = [], 0
    while start < len(text):
        end = text.find(" ", start + DOCUMENT)
        end = len(text) if end < 0 else end
        cuts.append(text[start:end])
        start = end
    return cuts


def timed(benchmark, call, num_bytes: int):
    result = benchmark.pedantic(call, rounds=5, warmup_rounds=1)
    benchmark.extra_info["mb_per_s"] = num_bytes / 1e6 / benchmark.stats.stats.min
    return result


def byte_bpe():
    from llmlab.reference.tokenizers._files import load_tiktoken
    from llmlab.reference.tokenizers.byte_bpe import BYTE_BPE

    (shape,) = BYTE_BPE.shapes.values()
    example = shape(np.random.default_rng(0))
    if LLAMA3.is_file():  # 128k real ranks on real prose
        book = (DATA / "sentencepiece" / "botchan.txt").read_text()
        return load_tiktoken(LLAMA3), book * 4
    return example["vocabulary"], example["text"]


@pytest.mark.parametrize("who", ["numba", "tiktoken", "tokenizers"])
def test_byte_bpe_beside(benchmark, who):
    from llmlab.harness.oracles.tokenizers.byte_bpe import hugging_face, tiktoken_encoding
    from llmlab.kernels.tokenizers.byte_bpe_numba import tokenize

    vocabulary, text = byte_bpe()
    size = len(text.encode())
    expected = tokenize(vocabulary, text)
    if who == "numba":
        assert timed(benchmark, lambda: tokenize(vocabulary, text), size) == expected
    elif who == "tiktoken":
        encoding = tiktoken_encoding(vocabulary)
        assert timed(benchmark, lambda: encoding.encode_ordinary(text), size) == expected
    else:
        tokenizer, cut = hugging_face(vocabulary), documents(text)
        found = timed(benchmark, lambda: tokenizer.encode_batch_fast(cut, add_special_tokens=False), size)
        assert sum(len(one.ids) for one in found) == pytest.approx(len(expected), rel=1e-3)  # a cut is a cut


@pytest.mark.parametrize("who", ["numba", "tokenizers"])
def test_wordpiece_beside(benchmark, who):
    from llmlab.harness.oracles.tokenizers.wordpiece import hugging_face
    from llmlab.kernels.tokenizers.wordpiece_numba import tokenize
    from llmlab.reference.tokenizers.wordpiece import WORDPIECE

    (shape,) = WORDPIECE.shapes.values()
    example = shape(np.random.default_rng(0))
    vocabulary, text = example["vocabulary"], example["text"]
    expected, size = tokenize(vocabulary, text), len(text.encode())
    if who == "numba":
        assert timed(benchmark, lambda: tokenize(vocabulary, text), size) == expected
    else:
        tokenizer, cut = hugging_face(vocabulary), documents(text)
        found = timed(benchmark, lambda: tokenizer.encode_batch_fast(cut, add_special_tokens=False), size)
        assert [number for one in found for number in one.ids] == expected


@pytest.mark.parametrize("who", ["numba", "sentencepiece"])
def test_unigram_beside(benchmark, who):
    from llmlab.harness.oracles.tokenizers.unigram import processor
    from llmlab.kernels.tokenizers.unigram_numba import tokenize
    from llmlab.reference.tokenizers.unigram import UNIGRAM

    (shape,) = UNIGRAM.shapes.values()
    example = shape(np.random.default_rng(0))
    vocabulary, text = example["vocabulary"], example["text"]
    size = len(text.encode())
    if who == "numba":
        timed(benchmark, lambda: tokenize(vocabulary, text), size)
    else:
        theirs = processor(vocabulary)
        found = timed(benchmark, lambda: theirs.encode(text), size)
        assert len(found) == pytest.approx(len(tokenize(vocabulary, text)), rel=1e-2)  # long texts: sums of another width


@pytest.mark.parametrize("who", ["numba", "tokenizers"])
def test_bpe_training_beside(benchmark, who):
    from llmlab.harness.oracles.tokenizers.bpe import tokenizers
    from llmlab.kernels.tokenizers.bpe_numba import learn_and_segment
    from llmlab.reference.tokenizers.bpe import BPE

    example = next(make for name, make in BPE.shapes.items() if name.startswith("train"))(np.random.default_rng(0))
    call = learn_and_segment if who == "numba" else tokenizers
    symbols, _ = timed(benchmark, lambda: call(**example), len(example["corpus"].encode()))
    assert len(symbols) == example["vocab_size"]


@pytest.mark.parametrize("who", ["numba", "torch sort"])
def test_top_p_beside(benchmark, who):
    import torch

    from llmlab.kernels.decoding.sampling_numba import sampling

    rng = np.random.default_rng(0)
    logits = rng.standard_normal((32, 128_256)).astype(np.float32) * 3
    uniform = rng.random(32).astype(np.float32)

    def by_sorting():
        probability, order = torch.softmax(torch.from_numpy(logits), -1).sort(-1, descending=True)
        kept = probability.cumsum(-1) - probability < 0.9
        drawn = torch.multinomial(torch.where(kept, probability, 0.0), 1)
        return order.gather(-1, drawn)[:, 0]

    call = by_sorting if who == "torch sort" else lambda: sampling(logits, uniform, top_p=0.9)[0]
    assert len(timed(benchmark, call, logits.nbytes)) == 32
