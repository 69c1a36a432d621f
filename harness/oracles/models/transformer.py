"""The Transformer of 2017 by torch.nn.Transformer between transformers' sinusoids, reordered, and a product with the table."""

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.models._stack import Stack
from llmlab.reference.models._weights import Weights
from llmlab.reference.models.transformer import TRANSFORMER, TransformerConfig


def _state(side: str, stack: Stack, weights: Weights) -> dict[str, np.ndarray]:
    """Weights under torch's names: q, k and v in one matrix, norms numbered."""
    state = {}
    for layer in range(stack.layers):
        ours, theirs = f"model.{side}.layers.{layer}.", f"{side}.layers.{layer}."
        blocks = [("self_attn", "self_attn")] + ([("encoder_attn", "multihead_attn")] if side == "decoder" else [])
        norms = ["self_attn_layer_norm", *(["encoder_attn_layer_norm"] if side == "decoder" else []), "final_layer_norm"]
        for kind in ("weight", "bias"):
            for mine, torchs in blocks:
                packed = [weights[f"{ours}{mine}.{x}_proj.{kind}"] for x in "qkv"]
                state[f"{theirs}{torchs}.in_proj_{kind}"] = np.concatenate(packed)
                state[f"{theirs}{torchs}.out_proj.{kind}"] = weights[f"{ours}{mine}.out_proj.{kind}"]
            for number, name in enumerate(norms, start=1):
                state[f"{theirs}norm{number}.{kind}"] = weights[f"{ours}{name}.{kind}"]
            for number in (1, 2):
                state[f"{theirs}linear{number}.{kind}"] = weights[f"{ours}fc{number}.{kind}"]
    return state


@oracle(TRANSFORMER, library="torch.nn.Transformer", needs=("transformers", "torch"))
def transformer(
    config: TransformerConfig, weights: Weights, source_BM: np.ndarray, keep_BM: np.ndarray, target_BT: np.ndarray
) -> np.ndarray:
    import torch
    from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

    e, d = config.encoder, config.decoder
    layer = {"activation": "relu", "batch_first": True, "dropout": 0.0, "dtype": torch.float64}
    model = torch.nn.Transformer(
        e.width,
        e.heads,
        custom_encoder=torch.nn.TransformerEncoder(
            torch.nn.TransformerEncoderLayer(e.width, e.heads, e.hidden, **layer), e.layers, enable_nested_tensor=False
        ),
        custom_decoder=torch.nn.TransformerDecoder(
            torch.nn.TransformerDecoderLayer(d.width, d.heads, d.hidden, **layer), d.layers
        ),
        batch_first=True,
    )
    state = _state("encoder", e, weights) | _state("decoder", d, weights)
    model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in state.items()})
    table = torch.from_numpy(np.array(weights["model.shared.weight"]))
    longest = max(source_BM.shape[1], target_BT.shape[1])
    halves = MarianSinusoidalPositionalEmbedding(longest, e.width).create_weight().double()  # all sines, then all cosines
    sinusoids = torch.stack([halves[:, : e.width // 2], halves[:, e.width // 2 :]], dim=-1).reshape(longest, e.width)

    def embedded(ids: np.ndarray) -> torch.Tensor:
        return table[torch.from_numpy(ids)] * e.width**0.5 + sinusoids[: ids.shape[1]]

    hidden = torch.from_numpy(~keep_BM)
    later = torch.ones(target_BT.shape[1], target_BT.shape[1], dtype=torch.bool).triu(1)
    with torch.no_grad():
        out = model.eval()(
            embedded(source_BM),
            embedded(target_BT),
            tgt_mask=later,
            src_key_padding_mask=hidden,
            memory_key_padding_mask=hidden,
        )
    return (out @ table.T).numpy()
