"""transformers' processors; frequency and presence, which it lacks, by the formula of OpenAI's API reference."""

from __future__ import annotations

from collections import Counter

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.decoding.penalties import PENALTIES


@oracle(PENALTIES, library="transformers.generation.logits_process", needs=("torch", "transformers"))
def penalties(logits_BV: np.ndarray, prompt_BP: np.ndarray, output_BS: np.ndarray, **options: float) -> np.ndarray:
    import torch
    from transformers.generation import logits_process as processors

    rows = []
    for logits_V, prompt, output in zip(logits_BV, prompt_BP, output_BS):  # their processors know no padding
        ids = torch.tensor([[token for token in [*prompt.tolist(), *output.tolist()] if token >= 0]], dtype=torch.long)
        scores = torch.tensor(logits_V)[None]
        if "repetition" in options and ids.numel():
            scores = processors.RepetitionPenaltyLogitsProcessor(float(options["repetition"]))(ids, scores)
        for token, times in Counter(token for token in output.tolist() if token >= 0).items():
            scores[0, token] -= times * options.get("frequency", 0.0) + options.get("presence", 0.0)
        if options.get("no_repeat_ngram"):
            scores = processors.NoRepeatNGramLogitsProcessor(int(options["no_repeat_ngram"]))(ids, scores)
        rows.append(scores[0].numpy())
    return np.stack(rows)
