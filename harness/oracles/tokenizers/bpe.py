"""Hugging Face's BpeTrainer and BPE model over words that end in a character of their own.

The library's own `end_of_word_suffix` marks the last character instead of adding a symbol, as later versions of the authors'
program do; the paper's algorithm 1 adds a symbol, so the words given to the library carry one.
"""

from __future__ import annotations

from llmlab.harness.oracle import oracle
from llmlab.reference.tokenizers.bpe import BPE, END_OF_WORD, UNKNOWN

LAST = "\U0010ffff"
"""Sorts after every character, as the end of a word does in our order of ids."""


@oracle(BPE, library="tokenizers.trainers.BpeTrainer", needs=("tokenizers",))
def tokenizers(corpus: str, vocab_size: int, text: str) -> tuple[tuple[str, ...], list[int]]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator([" ".join(word + LAST for word in corpus.split())], trainer)
    symbols = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    ids = tokenizer.encode(" ".join(word + LAST for word in text.split())).ids
    return tuple(symbol.replace(LAST, END_OF_WORD) for symbol in symbols), ids
