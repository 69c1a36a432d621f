"""BLEU and chrF by sacrebleu."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.evaluation.bleu import BLEU


@oracle(BLEU, library="sacrebleu.metrics.{BLEU,CHRF}", needs=("sacrebleu",))
def both(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    from sacrebleu.metrics import BLEU as CORPUS
    from sacrebleu.metrics import CHRF

    by_position = [list(texts) for texts in zip(*references)]  # sacrebleu wants a list per reference, not per hypothesis
    sentence = CORPUS(effective_order=True)
    return {
        "bleu": CORPUS().corpus_score(hypotheses, by_position).score,
        "sentences": np.array([sentence.sentence_score(h, list(r)).score for h, r in zip(hypotheses, references)]),
        "chrf": CHRF().corpus_score(hypotheses, by_position).score,
        "chrf++": CHRF(word_order=2).corpus_score(hypotheses, by_position).score,
    }
