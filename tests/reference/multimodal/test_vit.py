"""What only ViT has."""

import numpy as np
import pytest

from llmlab.reference.errors import InputError
from llmlab.reference.models._stack import drawn
from llmlab.reference.multimodal._patches import embedded_patches, patches
from llmlab.reference.multimodal.vit import OLDER, VitConfig, renamed, tiny_config, vit, vit_cost
from tests.reference.models.encoder_laws import assert_close, assert_every_weight_matters, count

RNG = np.random.default_rng(0)
CONFIG = tiny_config()
WEIGHTS = drawn(CONFIG.weight_shapes(), RNG)
PIXELS = RNG.standard_normal((2, 3, 8, 8))
BASE = {"model_type": "vit", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}


def test_patches_are_a_convolution_whose_stride_is_its_kernel() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    kernel, bias = RNG.standard_normal((5, 3, 4, 4)), RNG.standard_normal(5)
    theirs = torch.nn.functional.conv2d(*map(torch.from_numpy, (PIXELS, kernel, bias)), stride=4).flatten(2).transpose(1, 2)
    np.testing.assert_allclose(embedded_patches(PIXELS, kernel, bias), theirs.numpy(), rtol=1e-12)


def test_without_positions_a_picture_is_a_bag_of_patches() -> None:
    weights = {**WEIGHTS, "vit.embeddings.position_embeddings": np.zeros((1, 5, 12))}
    swapped = np.concatenate([PIXELS[:, :, 4:], PIXELS[:, :, :4]], axis=2)
    assert_close(vit(CONFIG, weights, swapped), vit(CONFIG, weights, PIXELS))
    assert np.abs(vit(CONFIG, WEIGHTS, swapped) - vit(CONFIG, WEIGHTS, PIXELS)).max() > 1e-3


def test_every_weight_matters() -> None:
    assert_every_weight_matters(lambda w: vit(CONFIG, w, PIXELS), WEIGHTS)


def test_older_names_are_understood_and_newer_ones_left_alone() -> None:
    older = {}
    for name, array in WEIGHTS.items():
        for old, new in OLDER.items():
            name = name.replace(new, old) if not (new == ".mlp.fc2" and "layers" not in name) else name
        older[name] = array
    assert "vit.encoder.layer.0.attention.attention.query.weight" in older
    assert renamed(older).keys() == WEIGHTS.keys() == renamed(WEIGHTS).keys()


def test_the_published_base_model_has_its_size() -> None:
    assert count(VitConfig.from_dict({**BASE, "num_labels": 1000}).weight_shapes()) == 86_567_656


def test_the_published_base_model_costs_its_17_gflops() -> None:
    # table 6 of DeiT (arXiv:2012.12877) counts multiply-adds: 17.6e9 for ViT-B/16 at 224
    d = {"B": 1, "I": 224, "P": 16, "C": 3, "L": 12, "D": 768, "N": 12, "F": 3072}
    assert vit_cost(d).flops / 2 == pytest.approx(17.6e9, rel=0.01)


def test_another_picture_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pictures of \(3, 12, 12\)"):
        vit(CONFIG, WEIGHTS, np.zeros((1, 3, 12, 12)))
    with pytest.raises(ValueError, match="6 x 8 pixels"):
        patches(np.zeros((1, 1, 6, 8)), 4)
    with pytest.raises(InputError, match="multiple of 15"):
        VitConfig.from_dict({**BASE, "patch_size": 15}, "config.json")
