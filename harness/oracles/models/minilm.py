"""The sentence encoder by transformers' BertModel, pooled and normalized by PyTorch."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.harness.oracles.models._transformers import loaded
from llmlab.reference.models._weights import Weights
from llmlab.reference.models.bert import BertConfig
from llmlab.reference.models.minilm import MINILM


@oracle(MINILM, library="transformers.BertModel, torch.nn.functional.normalize", needs=("transformers", "torch"))
def minilm(config: BertConfig, weights: Weights, ids_BT: np.ndarray, keep_BT: np.ndarray) -> np.ndarray:
    import torch
    import transformers

    s = config.stack
    theirs = transformers.BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=s.width,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        intermediate_size=s.hidden,
        max_position_embeddings=config.positions,
        type_vocab_size=config.segments,
        layer_norm_eps=s.eps,
        attn_implementation="eager",
    )
    model = loaded(transformers.BertModel(theirs, add_pooling_layer=False), weights)
    keep = torch.from_numpy(keep_BT)
    with torch.no_grad():
        hidden = model(input_ids=torch.from_numpy(ids_BT), attention_mask=keep.long()).last_hidden_state
    mean = torch.stack([hidden[b, keep[b]].mean(0) for b in range(len(keep))])
    return torch.nn.functional.normalize(mean, dim=1).numpy()
