"""LLaVA (Liu et al. 2023, arXiv:2304.08485; 1.5: arXiv:2310.03744): pictures as words of a language model.

CLIP's patches, from its last layer but one, are projected to the language model's width and take the place of the picture
tokens in a text. The LLaVA-1.5 projector has two matrices with a GELU between them. Axes: B text, P picture, C channel, I, J
pixel row and column, M patch, T token, D width of the language model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llmlab.reference.errors import InputError
from llmlab.reference.models._architecture import unpack
from llmlab.reference.models._blocks import embedded, head, linear, run_layers, same_logits
from llmlab.reference.models._config import Fields, ModelConfig
from llmlab.reference.models._stack import ACTIVATIONS, activated, drawn, single
from llmlab.reference.models._weights import Weights, check_shapes
from llmlab.reference.multimodal.clip import VisionConfig, vision_states
from llmlab.reference.op import Procedure

TOWER, PROJECTOR, LANGUAGE = "model.vision_tower.", "model.multi_modal_projector.", "model.language_model."
OLDER = {
    "language_model.lm_head.": "lm_head.",
    "language_model.model.": LANGUAGE,
    "vision_tower.vision_model.": TOWER,
    "multi_modal_projector.": PROJECTOR,
}
"""Starts of names in files written before transformers 5 -> names here."""


@dataclass(frozen=True)
class LlavaConfig:
    """A picture encoder, a projector, a language model.

    Attributes:
        picture_token: the id that pictures take the place of, one per patch.
        layer: layers of the picture encoder that are run: all but one, as released.
        with_class: whether the class token is handed on too ("full"; "default" leaves it out).
    """

    vision: VisionConfig
    language: ModelConfig
    picture_token: int
    layer: int
    with_class: bool
    activation: str

    @classmethod
    def from_dict(cls, d: Mapping[str, Any], where: str = "config") -> LlavaConfig:
        """Read a `config.json` of model_type llava.

        Raises:
            InputError: a field is missing or wrong, or several layers of features are asked for.
        """
        f = Fields(d, where)
        f.choice("model_type", ("llava",))
        vision = VisionConfig.from_dict(f.section("vision_config"), f"{where}: vision_config", TOWER)
        language = ModelConfig.from_dict(f.section("text_config"), f"{where}: text_config")
        chosen, depth = d.get("vision_feature_layer", -2), vision.stack.layers
        if not isinstance(chosen, int) or isinstance(chosen, bool) or not -depth <= chosen <= depth:
            raise InputError(where, "vision_feature_layer", chosen, f"must be one layer out of {depth}")
        strategy = f.choice("vision_feature_select_strategy", ("default", "full"), "default")
        return cls(
            vision,
            language,
            f.count("image_token_index", d.get("image_token_id", 32000), least=0),
            chosen if chosen >= 0 else depth + 1 + chosen,
            strategy == "full",
            ACTIVATIONS[f.choice("projector_hidden_act", tuple(ACTIVATIONS), "gelu")],
        )

    @property
    def tokens_per_picture(self) -> int:
        """Picture tokens a text must hold for each of its pictures."""
        return self.vision.patches + self.with_class

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all weights by their Hugging Face name."""
        D, wide = self.language.hidden_size, self.vision.stack.width
        projector = {"linear_1.weight": (D, wide), "linear_1.bias": (D,), "linear_2.weight": (D, D), "linear_2.bias": (D,)}
        return (
            self.vision.weight_shapes()
            | {PROJECTOR + name: shape for name, shape in projector.items()}
            | {_outer(name): shape for name, shape in self.language.weight_shapes().items()}
        )


def _outer(name: str) -> str:
    return LANGUAGE + name.removeprefix("model.") if name.startswith("model.") else name


def renamed(weights: Weights) -> dict[str, np.ndarray]:
    """Weights of an older file under the names used here; newer ones pass unchanged."""

    def new(name: str) -> str:
        return next((after + name.removeprefix(before) for before, after in OLDER.items() if name.startswith(before)), name)

    return {new(name): array for name, array in weights.items()}


def picture_words(config: LlavaConfig, weights: Weights, pixels_PCIJ: np.ndarray) -> np.ndarray:
    """Return words_PMD: what each patch of each picture says in the language model's terms.

    H_v = W_2 gelu(W_1 Z_v)      (eq. 1 of the first paper with the second one's projector)
    """
    partly = replace(config.vision, stack=replace(config.vision.stack, layers=config.layer))
    z_PMD = vision_states(partly, weights, pixels_PCIJ)
    z_PMD = z_PMD if config.with_class else z_PMD[:, 1:]
    return linear(weights, f"{PROJECTOR}linear_2", activated(config.activation, linear(weights, f"{PROJECTOR}linear_1", z_PMD)))


def llava(config: LlavaConfig, weights: Weights, pixels_PCIJ: np.ndarray, ids_BT: np.ndarray) -> np.ndarray:
    """Score every next token of texts with pictures in them; return logits_BTV.

    Pictures fill the picture tokens of the texts in order, patch by patch.

    Raises:
        ValueError: not as many picture tokens as the pictures need, a picture of another size, a weight that is missing or
            misshapen, an id outside the vocabulary.

    >>> config = tiny_config()
    >>> weights = drawn(config.weight_shapes(), np.random.default_rng(0))
    >>> llava(config, weights, np.ones((1, 3, 8, 8)), np.array([[5, 36, 36, 36, 36, 7]])).shape
    (1, 6, 37)
    """
    check_shapes("llava", config.weight_shapes(), weights)
    is_picture_BT = ids_BT == config.picture_token
    needed = len(pixels_PCIJ) * config.tokens_per_picture
    if np.count_nonzero(is_picture_BT) != needed:
        raise ValueError(f"{np.count_nonzero(is_picture_BT)} picture tokens: {len(pixels_PCIJ)} pictures need {needed}")
    own = {name: weights[_outer(name)] for name in config.language.weight_shapes()}
    outside, layers = unpack(config.language, own)
    x_BTD = embedded(config.language, outside, ids_BT, 0)
    if needed:
        x_BTD = x_BTD.copy()
        x_BTD[is_picture_BT] = picture_words(config, weights, pixels_PCIJ).reshape(-1, x_BTD.shape[-1])
    x_BTD, _ = run_layers(config.language, layers, x_BTD)
    return head(config.language, outside, x_BTD)


_TINY = {
    "model_type": "llava",
    "image_token_index": 36,
    "vision_config": {
        "hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 17, "num_hidden_layers": 3, "image_size": 8,
        "patch_size": 4,
    },
    "text_config": {
        "model_type": "llama", "hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 29,
        "num_hidden_layers": 2, "vocab_size": 37, "rms_norm_eps": 1e-5,
    },
}  # fmt: skip


def tiny_config(strategy: str = "default") -> LlavaConfig:
    """Four patches to a picture, a Llama of two layers."""
    return LlavaConfig.from_dict({**_TINY, "vision_feature_select_strategy": strategy}, "tiny llava")


def _examples(rng: np.random.Generator) -> dict[str, Any]:
    config = tiny_config(str(rng.choice(["default", "full"])))
    B, per = int(rng.integers(1, 3)), config.tokens_per_picture
    rows = []
    for _ in range(B):
        before, after = int(rng.integers(1, 4)), 3
        ids = rng.integers(0, 36, before + per + after)
        ids[before : before + per] = 36
        rows.append(ids[: 4 + per])
    pixels_PCIJ = rng.standard_normal((B, 3, 8, 8))
    ids_BT = np.stack(rows)
    return {"config": config, "weights": drawn(config.weight_shapes(), rng), "pixels_PCIJ": pixels_PCIJ, "ids_BT": ids_BT}


def _small(rng: np.random.Generator) -> dict[str, Any]:
    vision = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536}
    text = {"model_type": "llama", "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3}
    text |= {"intermediate_size": 1536, "num_hidden_layers": 4, "vocab_size": 49152}
    vision |= {"image_size": 224, "patch_size": 16}
    config = LlavaConfig.from_dict({"model_type": "llava", "vision_config": vision, "text_config": text}, "small llava")
    ids_1T = np.concatenate([rng.integers(0, 32000, 8), np.full(config.tokens_per_picture, 32000), rng.integers(0, 32000, 8)])
    pixels_PCIJ = rng.standard_normal((1, 3, 224, 224), dtype=np.float32)
    weights = single(drawn(config.weight_shapes(), rng, std=0.02))
    return {"config": config, "weights": weights, "pixels_PCIJ": pixels_PCIJ, "ids_BT": ids_1T[None]}


LLAVA = Procedure(
    reference=llava,
    examples=_examples,
    paper="arXiv:2304.08485",
    same=same_logits,
    shapes={"a picture of 196 patches and 16 words, small widths": _small},
)
