"""CLIP (Radford et al. 2021, arXiv:2103.00020): pictures and texts in one space, and the loss that puts them there.

Two pre-norm encoders with quick GELU; the text one looks back only. Axes: B picture, Q text, C channel, I, J pixel row and
column, T token, D width of an encoder, E width of the shared space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmlab.reference.layers.cross_entropy import cross_entropy
from llmlab.reference.layers.embedding import embedding
from llmlab.reference.models._config import Fields
from llmlab.reference.models._stack import Stack, drawn, norm, run, single
from llmlab.reference.models._weights import Weights, check_shapes
from llmlab.reference.models.llama import same_logits
from llmlab.reference.multimodal._patches import embedded_patches
from llmlab.reference.multimodal.vit import require_pixels, vision_stack, with_class_token
from llmlab.reference.op import Cost, Dims, Procedure

LAYER = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "attention_norm": "layer_norm1",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
    "feed_forward_norm": "layer_norm2",
}


@dataclass(frozen=True)
class VisionConfig:
    """CLIP's picture encoder, which LLaVA and others take over: layers, sides in pixels, prefix of its weights."""

    prefix: str
    stack: Stack
    image: int
    patch: int
    channels: int

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], where: str, prefix: str = "vision_model.") -> VisionConfig:
        """Read the `vision_config` of a `config.json`.

        Raises:
            InputError: a field is missing or wrong.
        """
        f = Fields(d, where)
        image, patch = f.count("image_size", 224), f.count("patch_size", 32)
        f.divides("image_size", image, patch, "pixels of a patch")
        stack = vision_stack(f, f"{prefix}encoder.layers.{{}}.", LAYER, activation="quick_gelu", eps=1e-5)
        return cls(prefix, stack, image, patch, f.count("num_channels", 3))

    @property
    def patches(self) -> int:
        """Patches of one picture."""
        return (self.image // self.patch) ** 2

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights; the norm in front really is called pre_layrnorm."""
        D, p = self.stack.width, self.prefix
        norms = {f"{p}{name}.{kind}": (D,) for name in ("pre_layrnorm", "post_layernorm") for kind in ("weight", "bias")}
        return self.stack.shapes() | {
            f"{p}embeddings.class_embedding": (D,),
            f"{p}embeddings.patch_embedding.weight": (D, self.channels, self.patch, self.patch),
            f"{p}embeddings.position_embedding.weight": (self.patches + 1, D),
            **norms,
        }


def vision_states(config: VisionConfig, weights: Weights, pixels_BCIJ: np.ndarray) -> np.ndarray:
    """Return x_BTD after the last layer, the class token first, before the norm at the end.

    Raises:
        ValueError: another picture size than the positions are for.
    """
    require_pixels(pixels_BCIJ, config.image, config.channels)
    p = f"{config.prefix}embeddings."
    x_BTD = with_class_token(
        embedded_patches(pixels_BCIJ, weights[f"{p}patch_embedding.weight"]), weights[f"{p}class_embedding"]
    )
    x_BTD = norm(config.stack, weights, f"{config.prefix}pre_layrnorm", x_BTD + weights[f"{p}position_embedding.weight"])
    return run(config.stack, weights, x_BTD)[0]


@dataclass(frozen=True)
class ClipConfig:
    """Both encoders and the width E of the space they share.

    Attributes:
        end: the token whose state stands for a text; the highest id of a text where None (files before August 2023).
    """

    vision: VisionConfig
    text: Stack
    vocab_size: int
    positions: int
    shared: int
    end: int | None

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], where: str = "config") -> ClipConfig:
        """Read a `config.json` of model_type clip.

        Raises:
            InputError: a field is missing or wrong.
        """
        f = Fields(d, where)
        f.choice("model_type", ("clip",))
        vision = VisionConfig.from_dict(f.section("vision_config"), f"{where}: vision_config")
        t = Fields(f.section("text_config"), f"{where}: text_config")
        text = vision_stack(t, "text_model.encoder.layers.{}.", LAYER, activation="quick_gelu", eps=1e-5)
        end = t.count("eos_token_id", 49407, least=0)
        positions, shared = t.count("max_position_embeddings", 77), f.count("projection_dim", 512)
        return cls(vision, text, t.count("vocab_size", 49408), positions, shared, None if end == 2 else end)

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all weights by their Hugging Face name."""
        D = self.text.width
        return (
            self.vision.weight_shapes()
            | self.text.shapes()
            | {
                "text_model.embeddings.token_embedding.weight": (self.vocab_size, D),
                "text_model.embeddings.position_embedding.weight": (self.positions, D),
                "text_model.final_layer_norm.weight": (D,),
                "text_model.final_layer_norm.bias": (D,),
                "visual_projection.weight": (self.shared, self.vision.stack.width),
                "text_projection.weight": (self.shared, D),
                "logit_scale": (),
            }
        )


def picture_vectors(config: ClipConfig, weights: Weights, pixels_BCIJ: np.ndarray) -> np.ndarray:
    """Return vectors_BE of length one."""
    x_BTD = vision_states(config.vision, weights, pixels_BCIJ)
    x_BD = norm(config.vision.stack, weights, "vision_model.post_layernorm", x_BTD[:, :1])[:, 0]
    return _unit(x_BD @ weights["visual_projection.weight"].T)


def text_vectors(config: ClipConfig, weights: Weights, ids_QT: np.ndarray) -> np.ndarray:
    """Return vectors_QE of length one: the state at the token that ends a text, which has seen all of it."""
    positions_QT = np.broadcast_to(np.arange(ids_QT.shape[1]), ids_QT.shape)
    x_QTD = embedding(ids_QT, weights["text_model.embeddings.token_embedding.weight"])
    x_QTD = x_QTD + embedding(positions_QT, weights["text_model.embeddings.position_embedding.weight"])
    x_QTD, _ = run(config.text, weights, x_QTD, causal=True)
    x_QTD = norm(config.text, weights, "text_model.final_layer_norm", x_QTD)
    end_Q = np.argmax(ids_QT if config.end is None else ids_QT == config.end, axis=1)
    return _unit(x_QTD[np.arange(len(ids_QT)), end_Q] @ weights["text_projection.weight"].T)


def _unit(x_BE: np.ndarray) -> np.ndarray:
    return x_BE / np.linalg.norm(x_BE, axis=-1, keepdims=True)


def clip(config: ClipConfig, weights: Weights, pixels_BCIJ: np.ndarray, ids_QT: np.ndarray) -> np.ndarray:
    """Score every picture against every text; return logits_BQ.

        logits = exp(scale) (I W_i / |.|)(T W_t / |.|)'      (figure 3 of the paper; the scale is learned)

    Raises:
        ValueError: another picture size than the positions are for, a weight that is missing or misshapen, an id or a
            position outside its table.

    >>> config = tiny_config()
    >>> weights = drawn(config.weight_shapes(), np.random.default_rng(0))
    >>> clip(config, weights, np.ones((2, 3, 8, 8)), np.array([[3, 30], [4, 30], [5, 30]])).shape
    (2, 3)
    """
    check_shapes("clip", config.weight_shapes(), weights)
    pictures_BE, texts_QE = picture_vectors(config, weights, pixels_BCIJ), text_vectors(config, weights, ids_QT)
    return np.exp(weights["logit_scale"]) * pictures_BE @ texts_QE.T


def symmetric_loss(logits_BB: np.ndarray) -> float:
    """Mean cross-entropy of finding each picture's text and each text's picture, pairs on the diagonal (figure 3).

    Raises:
        ValueError: not as many pictures as texts.

    >>> round(float(symmetric_loss(np.zeros((4, 4))) / np.log(2)), 12)  # two bits
    2.0
    """
    B = len(logits_BB)
    if logits_BB.shape != (B, B):
        raise ValueError(f"{logits_BB.shape[0]} pictures, {logits_BB.shape[1]} texts: pairs are needed")
    own_1B = np.arange(B)[None]
    return float(np.mean([cross_entropy(side[None], own_1B) for side in (logits_BB, logits_BB.T)]))


_TINY = {
    "model_type": "clip",
    "projection_dim": 7,
    "vision_config": {
        "hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 17, "num_hidden_layers": 2, "image_size": 8,
        "patch_size": 4,
    },
    "text_config": {
        "hidden_size": 10, "num_attention_heads": 2, "intermediate_size": 13, "num_hidden_layers": 2, "vocab_size": 31,
        "max_position_embeddings": 9,
    },
}  # fmt: skip


def tiny_config(end: int = 30) -> ClipConfig:
    """Two layers a side; `end` is the token that ends a text (2 for files of the older kind)."""
    text = {**_TINY["text_config"], "eos_token_id": end}  # type: ignore[dict-item]
    return ClipConfig.from_dict({**_TINY, "text_config": text}, "tiny clip")


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    config = tiny_config(int(rng.choice([2, 30])))
    B, Q, T = int(rng.integers(1, 4)), int(rng.integers(1, 4)), int(rng.integers(1, 9))
    ids_QT = rng.integers(3, 30, (Q, T))
    ids_QT[np.arange(Q), rng.integers(0, T, Q)] = 30
    pixels_BCIJ = rng.standard_normal((B, 3, 8, 8))
    return {"config": config, "weights": drawn(config.weight_shapes(), rng), "pixels_BCIJ": pixels_BCIJ, "ids_QT": ids_QT}


def clip_cost(d: Dims) -> Cost:
    """Pictures of P + 1 tokens and texts of T through L layers of width D each side, and every pair's product in E."""
    stack = Stack("", LAYER, d["L"], d["D"], d["N"], d["D"] // d["N"], 4 * d["D"], True, 0.0, "quick_gelu")
    pairs = Cost(2 * d["B"] * d["Q"] * d["E"], (d["B"] + d["Q"]) * d["E"], d["B"] * d["Q"])
    return stack.cost(d["B"], d["P"] + 1, d["P"] + 1) + stack.cost(d["Q"], d["T"], d["T"], causal=True) + pairs


def _vit_b_32(rng: np.random.Generator) -> dict[str, Any]:
    vision = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    text = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048}
    config = ClipConfig.from_dict({"model_type": "clip", "vision_config": vision, "text_config": text}, "clip ViT-B/32")
    ids_QT = np.concatenate([rng.integers(0, 49406, (1, 15)), np.full((1, 1), 49407)], axis=1)
    pixels_BCIJ = rng.standard_normal((1, 3, 224, 224), dtype=np.float32)
    weights = single(drawn(config.weight_shapes(), rng, std=0.02))
    return {"config": config, "weights": weights, "pixels_BCIJ": pixels_BCIJ, "ids_QT": ids_QT}


CLIP = Procedure(
    reference=clip,
    examples=_examples,
    paper="arXiv:2103.00020",
    same=same_logits,
    cost=clip_cost,
    shapes={"ViT-B/32, one picture, one text": _vit_b_32},
)
