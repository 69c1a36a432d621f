"""T5 by transformers."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.models._transformers import loaded
from llmlab.reference.models._weights import Weights
from llmlab.reference.models.t5 import T5, T5Config


@oracle(T5, library="transformers.T5ForConditionalGeneration", needs=("transformers", "torch"))
def t5(config: T5Config, weights: Weights, source_BM: np.ndarray, keep_BM: np.ndarray, target_BT: np.ndarray) -> np.ndarray:
    import torch
    import transformers

    e, d = config.encoder, config.decoder
    theirs = transformers.T5Config(
        vocab_size=config.vocab_size,
        d_model=e.width,
        d_kv=e.head_width,
        d_ff=e.hidden,
        num_layers=e.layers,
        num_decoder_layers=d.layers,
        num_heads=e.heads,
        relative_attention_num_buckets=config.buckets,
        relative_attention_max_distance=config.max_distance,
        feed_forward_proj="gated-gelu" if "gate" in e.names else "relu",
        layer_norm_epsilon=e.eps,
        tie_word_embeddings=config.tied,
        attn_implementation="eager",
    )
    model = transformers.T5ForConditionalGeneration(theirs)
    # transformers 5 ties the output matrix whatever the configuration says; version 1.1 and FLAN have one of their own
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    table = weights["shared.weight"]
    own = {"encoder.embed_tokens.weight": table, "decoder.embed_tokens.weight": table, "lm_head.weight": table} | dict(weights)
    model = loaded(model, own, tie=False)
    with torch.no_grad():
        found = model(
            input_ids=torch.from_numpy(source_BM),
            attention_mask=torch.from_numpy(keep_BM.astype(np.int64)),
            decoder_input_ids=torch.from_numpy(target_BT),
        )
    return found.logits.numpy()
