"""BART by transformers."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.models._transformers import loaded
from llmlab.reference.models._weights import Weights
from llmlab.reference.models.bart import BART, BartConfig


@oracle(BART, library="transformers.BartForConditionalGeneration", needs=("transformers", "torch"))
def bart(config: BartConfig, weights: Weights, source_BM: np.ndarray, keep_BM: np.ndarray, target_BT: np.ndarray) -> np.ndarray:
    import torch
    import transformers

    e, d = config.encoder, config.decoder
    theirs = transformers.BartConfig(
        vocab_size=config.vocab_size,
        d_model=e.width,
        encoder_layers=e.layers,
        decoder_layers=d.layers,
        encoder_attention_heads=e.heads,
        decoder_attention_heads=d.heads,
        encoder_ffn_dim=e.hidden,
        decoder_ffn_dim=d.hidden,
        max_position_embeddings=config.positions,
        scale_embedding=config.scale != 1,
        attn_implementation="eager",
    )
    made = ("embed_tokens.weight", "lm_head.weight")
    model = loaded(transformers.BartForConditionalGeneration(theirs), weights, made=made)
    with torch.no_grad():
        found = model(
            input_ids=torch.from_numpy(source_BM),
            attention_mask=torch.from_numpy(keep_BM.astype(np.int64)),
            decoder_input_ids=torch.from_numpy(target_BT),
        )
    return found.logits.numpy()
