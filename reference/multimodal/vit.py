"""ViT (Dosovitskiy et al. 2020, arXiv:2010.11929): a picture is a text of patches.

Pre-norm layers with GELU over patches and one class token in front, learned positions. Axes: B batch, C channel, I, J pixel row
and column, T patch and class token, D model width, K class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmlab.reference.models._blocks import linear
from llmlab.reference.models._config import Fields
from llmlab.reference.models._stack import ACTIVATIONS, Stack, drawn, norm, run, single
from llmlab.reference.models._weights import Weights, check_shapes
from llmlab.reference.models.llama import same_logits
from llmlab.reference.multimodal._patches import embedded_patches
from llmlab.reference.op import Cost, Dims, Procedure

LAYER = {
    "query": "attention.q_proj",
    "key": "attention.k_proj",
    "value": "attention.v_proj",
    "out": "attention.o_proj",
    "attention_norm": "layernorm_before",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
    "feed_forward_norm": "layernorm_after",
}
OLDER = {
    "vit.encoder.layer.": "vit.layers.",
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    ".output.dense": ".mlp.fc2",
}
"""Names in files written before transformers 5 -> names here; replaced in this order."""


@dataclass(frozen=True)
class VitConfig:
    """The layers, the side of picture and patch in pixels, and the classes."""

    stack: Stack
    image: int
    patch: int
    channels: int
    classes: int

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], where: str = "config") -> VitConfig:
        """Read a `config.json` of model_type vit; its classes are those of `id2label`, or `num_labels`.

        Raises:
            InputError: a field is missing or wrong.
        """
        f = Fields(d, where)
        f.choice("model_type", ("vit",))
        image, patch = f.count("image_size", 224), f.count("patch_size", 16)
        f.divides("image_size", image, patch, "pixels of a patch")
        classes = len(d["id2label"]) if d.get("id2label") else f.count("num_labels", 2)
        stack = vision_stack(f, "vit.layers.{}.", LAYER, activation="gelu", eps=1e-12)
        return cls(stack, image, patch, f.count("num_channels", 3), classes)

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all weights by their Hugging Face name."""
        D, tokens = self.stack.width, (self.image // self.patch) ** 2 + 1
        return self.stack.shapes() | {
            "vit.embeddings.cls_token": (1, 1, D),
            "vit.embeddings.position_embeddings": (1, tokens, D),
            "vit.embeddings.patch_embeddings.projection.weight": (D, self.channels, self.patch, self.patch),
            "vit.embeddings.patch_embeddings.projection.bias": (D,),
            "vit.layernorm.weight": (D,),
            "vit.layernorm.bias": (D,),
            "classifier.weight": (self.classes, D),
            "classifier.bias": (self.classes,),
        }


def vision_stack(f: Fields, prefix: str, names: Mapping[str, str], *, activation: str, eps: float) -> Stack:
    """The layers that the fields of a vision (or text) configuration describe.

    Raises:
        InputError: a field is missing or wrong.
    """
    D, N = f.count("hidden_size"), f.count("num_attention_heads")
    f.divides("hidden_size", D, N)
    return Stack(
        prefix=prefix,
        names=names,
        layers=f.count("num_hidden_layers"),
        width=D,
        heads=N,
        head_width=D // N,
        hidden=f.count("intermediate_size"),
        pre_norm=True,
        eps=f.positive("layer_norm_eps", eps),
        activation=ACTIVATIONS[f.choice("hidden_act", tuple(ACTIVATIONS), activation)],
    )


def renamed(weights: Weights) -> dict[str, np.ndarray]:
    """Weights of an older file under the names used here; newer ones pass unchanged."""
    found = {}
    for name, array in weights.items():
        for old, new in OLDER.items():
            name = name.replace(old, new)
        found[name] = array
    return found


def vit(config: VitConfig, weights: Weights, pixels_BCIJ: np.ndarray) -> np.ndarray:
    """Score the classes of pictures; return logits_BK.

        z = [class; E patches] + positions,   logits = W norm(layers z)[0] + b      (eq. 1-4)

    Raises:
        ValueError: another picture size than the positions are for, a weight that is missing or misshapen.

    >>> config = tiny_config()
    >>> zeros = {name: np.zeros(shape) for name, shape in config.weight_shapes().items()}
    >>> vit(config, zeros, np.zeros((2, 3, 8, 8))).shape
    (2, 5)
    """
    check_shapes("vit", config.weight_shapes(), weights)
    require_pixels(pixels_BCIJ, config.image, config.channels)
    start = "vit.embeddings."
    kernel, bias = (weights[f"{start}patch_embeddings.projection.{kind}"] for kind in ("weight", "bias"))
    x_BTD = with_class_token(embedded_patches(pixels_BCIJ, kernel, bias), weights[f"{start}cls_token"][0])
    x_BTD, _ = run(config.stack, weights, x_BTD + weights[f"{start}position_embeddings"])
    return linear(weights, "classifier", norm(config.stack, weights, "vit.layernorm", x_BTD)[:, 0])


def require_pixels(pixels_BCIJ: np.ndarray, image: int, channels: int) -> None:
    """Refuse pictures of another size.

    Raises:
        ValueError: not channels x image x image.
    """
    if pixels_BCIJ.shape[1:] != (channels, image, image):
        raise ValueError(f"pictures of {pixels_BCIJ.shape[1:]}: positions are for {(channels, image, image)}")


def with_class_token(x_BTD: np.ndarray, token_1D: np.ndarray) -> np.ndarray:
    """Put the class token in front of every picture's patches."""
    B, _, D = x_BTD.shape
    return np.concatenate([np.broadcast_to(token_1D, (B, 1, D)), x_BTD], axis=1)


def vit_cost(d: Dims) -> Cost:
    """Patches of P x P pixels of C channels in a picture of I x I, and the layers; the classifier is nothing beside them."""
    patches, D = (d["I"] // d["P"]) ** 2, d["D"]
    stack = Stack("", LAYER, d["L"], D, d["N"], D // d["N"], d["F"], True, 0.0, "gelu")
    pixels = d["C"] * d["P"] ** 2
    front = Cost(2 * d["B"] * patches * pixels * D, (d["B"] * patches + D) * pixels, 0)
    return front + stack.cost(d["B"], patches + 1, patches + 1)


_TINY = {
    "model_type": "vit", "hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 17, "num_hidden_layers": 2,
    "image_size": 8, "patch_size": 4, "num_labels": 5,
}  # fmt: skip


def tiny_config() -> VitConfig:
    """Two layers, four patches, five classes."""
    return VitConfig.from_dict(_TINY, "tiny vit")


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    config = tiny_config()
    pixels_BCIJ = rng.standard_normal((int(rng.integers(1, 4)), config.channels, config.image, config.image))
    return {"config": config, "weights": drawn(config.weight_shapes(), rng), "pixels_BCIJ": pixels_BCIJ}


def _deit_tiny(rng: np.random.Generator) -> dict[str, Any]:
    sizes = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "num_hidden_layers": 12}
    config = VitConfig.from_dict({"model_type": "vit", "num_labels": 1000, **sizes}, "vit tiny/16")
    pixels_BCIJ = rng.standard_normal((1, 3, 224, 224), dtype=np.float32)
    return {"config": config, "weights": single(drawn(config.weight_shapes(), rng, std=0.02)), "pixels_BCIJ": pixels_BCIJ}


VIT = Procedure(
    reference=vit,
    examples=_examples,
    paper="arXiv:2010.11929",
    same=same_logits,
    cost=vit_cost,
    shapes={"vit tiny/16, one picture of 224": _deit_tiny},
)
