"""What only CLIP has."""

import numpy as np
import pytest

from llmlab.reference.errors import InputError
from llmlab.reference.models._stack import drawn
from llmlab.reference.multimodal.clip import ClipConfig, clip, picture_vectors, symmetric_loss, text_vectors, tiny_config
from tests.reference.models.encoder_laws import assert_close, assert_every_weight_matters, count

RNG = np.random.default_rng(0)
CONFIG = tiny_config()
WEIGHTS = drawn(CONFIG.weight_shapes(), RNG)
PIXELS = RNG.standard_normal((3, 3, 8, 8))
TEXTS = np.array([[3, 4, 30, 9, 9], [5, 6, 7, 8, 30]])


def test_what_follows_the_end_of_a_text_has_no_say() -> None:
    other = TEXTS.copy()
    other[0, 3:] = 11
    np.testing.assert_array_equal(text_vectors(CONFIG, WEIGHTS, other), text_vectors(CONFIG, WEIGHTS, TEXTS))


def test_files_of_the_older_kind_end_a_text_at_its_highest_id() -> None:
    older = tiny_config(end=2)
    assert older.end is None
    assert_close(text_vectors(older, WEIGHTS, TEXTS), text_vectors(CONFIG, WEIGHTS, TEXTS))  # 30 is the highest


def test_scores_are_scaled_cosines() -> None:
    one = {**WEIGHTS, "logit_scale": np.array(0.0)}
    scores = clip(CONFIG, one, PIXELS, TEXTS)
    assert np.abs(scores).max() <= 1
    assert_close(clip(CONFIG, {**WEIGHTS, "logit_scale": np.log(100.0)}, PIXELS, TEXTS), 100 * scores)
    np.testing.assert_allclose(np.linalg.norm(picture_vectors(CONFIG, WEIGHTS, PIXELS), axis=1), 1)


def test_every_weight_matters() -> None:
    assert_every_weight_matters(lambda w: clip(CONFIG, w, PIXELS, TEXTS), WEIGHTS)


def test_the_loss_is_what_torch_computes_from_both_sides() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    logits = RNG.standard_normal((5, 5))
    theirs, own = torch.from_numpy(logits), torch.arange(5)
    entropy = torch.nn.functional.cross_entropy
    expected = (entropy(theirs, own) + entropy(theirs.T, own)) / 2
    assert symmetric_loss(logits) == pytest.approx(float(expected), rel=1e-12)
    assert symmetric_loss(logits) == pytest.approx(symmetric_loss(logits.T))
    assert symmetric_loss(100 * np.eye(5)) < 1e-9


def test_the_published_model_has_its_size() -> None:
    vision = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    text = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048}
    config = ClipConfig.from_dict({"model_type": "clip", "vision_config": vision, "text_config": text})
    assert count(config.weight_shapes()) == 151_277_313  # ViT-B/32


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="3 pictures, 2 texts"):
        symmetric_loss(np.zeros((3, 2)))
    with pytest.raises(InputError, match="vision_config"):
        ClipConfig.from_dict({"model_type": "clip"}, "config.json")
    vision = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    with pytest.raises(InputError, match="text_config: hidden_size"):
        ClipConfig.from_dict({"model_type": "clip", "vision_config": vision, "text_config": {}}, "config.json")
