"""What only LLaVA has."""

import numpy as np
import pytest

from llmlab.reference.errors import InputError
from llmlab.reference.models._blocks import forward
from llmlab.reference.models._stack import drawn
from llmlab.reference.multimodal.llava import OLDER, LlavaConfig, llava, picture_words, renamed, tiny_config
from tests.reference.models.encoder_laws import assert_close, assert_every_weight_matters, count

RNG = np.random.default_rng(0)
CONFIG = tiny_config()
WEIGHTS = drawn(CONFIG.weight_shapes(), RNG)
PIXELS = RNG.standard_normal((1, 3, 8, 8))
TEXT = np.array([[5, 6, 36, 36, 36, 36, 7, 8]])


def language(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.replace("model.language_model.", "model."): array for name, array in weights.items()}


def test_a_text_without_pictures_is_the_language_model_alone() -> None:
    plain = np.array([[5, 6, 7]])
    np.testing.assert_array_equal(llava(CONFIG, WEIGHTS, PIXELS[:0], plain), forward(CONFIG.language, language(WEIGHTS), plain))


def test_words_before_a_picture_do_not_see_it_and_words_after_it_do() -> None:
    before, after = llava(CONFIG, WEIGHTS, PIXELS, TEXT), llava(CONFIG, WEIGHTS, PIXELS + 1 + PIXELS**2, TEXT)
    np.testing.assert_array_equal(before[:, :2], after[:, :2])
    assert (np.abs(before - after)[0, 2:].max(-1) > 1e-6).all()


def test_pictures_fill_their_tokens_in_order() -> None:
    two = np.concatenate([PIXELS, PIXELS[:, :, ::-1]])
    texts = np.concatenate([TEXT, TEXT])
    one = [llava(CONFIG, WEIGHTS, two[i : i + 1], TEXT) for i in (0, 1)]
    assert_close(llava(CONFIG, WEIGHTS, two, texts), np.concatenate(one))


def test_the_last_layer_of_the_picture_encoder_is_not_run() -> None:
    unread = {name for name in WEIGHTS if ".encoder.layers.2." in name or "post_layernorm" in name}
    assert unread
    moved = {name: array + 1.0 if name in unread else array for name, array in WEIGHTS.items()}
    np.testing.assert_array_equal(picture_words(CONFIG, moved, PIXELS), picture_words(CONFIG, WEIGHTS, PIXELS))
    used = {name: array for name, array in WEIGHTS.items() if name not in unread}
    assert_every_weight_matters(lambda w: llava(CONFIG, {**WEIGHTS, **w}, PIXELS, TEXT), used)


def test_full_hands_on_the_class_token_too() -> None:
    full = tiny_config("full")
    assert picture_words(full, WEIGHTS, PIXELS).shape[1] == CONFIG.tokens_per_picture + 1 == full.tokens_per_picture
    assert_close(picture_words(full, WEIGHTS, PIXELS)[:, 1:], picture_words(CONFIG, WEIGHTS, PIXELS))


def test_older_names_are_understood() -> None:
    older = {}
    for name, array in WEIGHTS.items():
        start = next((new for new in OLDER.values() if name.startswith(new)), "")
        old = next((old for old, new in OLDER.items() if new == start), "")
        older[old + name.removeprefix(start)] = array
    assert any(name.startswith("vision_tower.vision_model.") for name in older)
    assert renamed(older).keys() == WEIGHTS.keys() == renamed(WEIGHTS).keys()


def test_the_published_model_has_its_size() -> None:
    vision = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    text = {"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 11008}
    text |= {"num_hidden_layers": 32, "vocab_size": 32064}
    sizes = {"image_size": 336, "patch_size": 14}
    config = LlavaConfig.from_dict({"model_type": "llava", "vision_config": {**vision, **sizes}, "text_config": text})
    assert config.tokens_per_picture == 576
    assert count(config.weight_shapes()) == 7_063_427_072  # llava-1.5-7b-hf


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"vision_feature_layer": [-2, -5]}, "vision_feature_layer"),
        ({"vision_feature_layer": 9}, "one layer out of 3"),
        ({"vision_feature_select_strategy": "some"}, "vision_feature_select_strategy"),
        ({"text_config": None}, "text_config"),
    ],
)
def test_bad_files_end_with_one_line(change, why) -> None:
    from llmlab.reference.multimodal.llava import _TINY

    with pytest.raises(InputError, match=why):
        LlavaConfig.from_dict({**_TINY, **change}, "config.json")


def test_picture_tokens_must_be_as_many_as_patches() -> None:
    with pytest.raises(ValueError, match="3 picture tokens: 1 pictures need 4"):
        llava(CONFIG, WEIGHTS, PIXELS, TEXT[:, [0, 1, 2, 3, 4, 6]])
