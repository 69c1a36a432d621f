"""BERT and RoBERTa by transformers."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.models._transformers import loaded
from llmlab.reference.models._weights import Weights
from llmlab.reference.models.bert import BERT, BertConfig


@oracle(BERT, library="transformers.{BertForMaskedLM,RobertaForMaskedLM}", needs=("transformers", "torch"))
def bert(config: BertConfig, weights: Weights, ids_BT: np.ndarray, keep_BT: np.ndarray, segments_BT: np.ndarray) -> np.ndarray:
    import torch
    import transformers

    s, is_bert = config.stack, config.padding is None
    make, build = (
        (transformers.BertConfig, transformers.BertForMaskedLM)
        if is_bert
        else (transformers.RobertaConfig, transformers.RobertaForMaskedLM)
    )
    theirs = make(
        vocab_size=config.vocab_size,
        hidden_size=s.width,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        intermediate_size=s.hidden,
        max_position_embeddings=config.positions,
        type_vocab_size=config.segments,
        layer_norm_eps=s.eps,
        pad_token_id=0 if is_bert else config.padding,
        attn_implementation="eager",
    )
    model = loaded(build(theirs), weights, made=("decoder.weight", "decoder.bias"))
    with torch.no_grad():
        found = model(
            input_ids=torch.from_numpy(ids_BT),
            attention_mask=torch.from_numpy(keep_BT.astype(np.int64)),
            token_type_ids=torch.from_numpy(segments_BT),
        )
    return found.logits.numpy()
