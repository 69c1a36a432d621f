"""The Perceiver resampler by IDEFICS in transformers; gated cross-attention composed of torch.nn.functional.

IDEFICS' gated layer has RMSNorm and a SwiGLU in it where the paper has LayerNorm and one activation, so it is no oracle of the
whole block; its gates and its rule for texts without pictures are the same.
"""

from types import SimpleNamespace

import numpy as np

from llmlab.harness.oracle import oracle
from llmlab.reference.models._weights import Weights
from llmlab.reference.multimodal.flamingo import FLAMINGO


@oracle(
    FLAMINGO,
    library="transformers IdeficsPerceiverResampler, torch scaled_dot_product_attention",
    needs=("transformers", "torch"),
)
def flamingo(
    resampler: Weights, gated: Weights, features_BMD: np.ndarray, x_BTD: np.ndarray, keep_B: np.ndarray, *, heads: int
) -> dict[str, np.ndarray]:
    import torch
    from torch.nn import functional as F
    from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

    R, D = resampler["latents"].shape
    depth = len({name.split(".")[1] for name in resampler if name.startswith("blocks.")})
    vision = SimpleNamespace(embed_dim=D)
    config = SimpleNamespace(perceiver_config=SimpleNamespace(qk_layer_norms_perceiver=False), vision_config=vision)
    width = len(resampler["blocks.0.0.q_proj.weight"]) // heads
    model = IdeficsPerceiverResampler(config, D, depth, heads, width, R).double()
    for layer in range(depth):  # its hidden width is four times the vision width; ours is whatever the weights say
        hidden = len(resampler[f"blocks.{layer}.1.fc.weight"])
        model.blocks[layer][1].fc = torch.nn.Linear(D, hidden, bias=False).double()
        model.blocks[layer][1].c_proj = torch.nn.Linear(hidden, D, bias=False).double()
    model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in resampler.items()})
    own = {name: torch.from_numpy(np.array(array)) for name, array in gated.items()}

    def normed(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (D,), own[f"{name}.weight"], own[f"{name}.bias"])

    def cut(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    with torch.no_grad():
        latents, x = model(torch.from_numpy(features_BMD)), torch.from_numpy(x_BTD)
        q, k, v = (
            cut(source @ own[f"{name}_proj.weight"].T)
            for name, source in (("q", normed("attention_norm", x)), ("k", latents), ("v", latents))
        )
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2) * torch.from_numpy(keep_B)[:, None, None]
        x = x + own["attention_gate"].tanh() * (seen @ own["o_proj.weight"].T)
        hidden_states = F.gelu(normed("feed_forward_norm", x) @ own["up_proj.weight"].T)
        x = x + own["feed_forward_gate"].tanh() * (hidden_states @ own["down_proj.weight"].T)
    return {"latents": latents.numpy(), "tokens": x.numpy()}
