"""The trainer's model is the reference's, and its gradients are those of its loss."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: the trainer runs on it")

from llmlab.harness.runtime.trainer import build_part, first_weights  # noqa: E402
from llmlab.harness.runtime.trainer_model import Groups, Tape, check_model, cut_of  # noqa: E402
from llmlab.harness.runtime.trainer_shards import CountedPeers, Meter  # noqa: E402
from llmlab.harness.runtime.training_data import microbatches, read_text  # noqa: E402
from llmlab.reference.errors import InputError  # noqa: E402
from llmlab.reference.models._blocks import decoder  # noqa: E402
from llmlab.reference.models._config import ModelConfig  # noqa: E402
from llmlab.reference.models._presets import preset  # noqa: E402
from llmlab.simulator.training.plan import ParallelPlan, gpt  # noqa: E402

SPARSE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "sparse_layers": (True,) * 2}
LLAMA = ModelConfig("llama", "llama", 16, 24, 2, 4, 2, 8, vocab_size=64)
EXPERTS = ModelConfig("experts", "qwen3_moe", 16, 24, 2, 4, 2, 8, vocab_size=64, qk_norm=True, **SPARSE)
GPT = gpt(2, 16, 4, 64, 16, name="gpt").config
PLAN = ParallelPlan(precision="float64", microbatch=2, global_batch=2, sequence=9)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """Products this small are quicker on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def loss_of(config: ModelConfig, weights: dict[str, np.ndarray]) -> tuple[float, dict[str, np.ndarray]]:
    alone = CountedPeers("", Meter())
    part = build_part(config, PLAN, 0, 1, weights, Groups(alone, alone, alone, alone, alone))
    ids_BT, target_BT = (torch.from_numpy(one[0]) for one in text(config))
    tape = Tape()
    loss = part.layers.loss(part.layers.forward(ids_BT, tape), target_BT, tape)
    loss.backward()
    part.play(tape)
    found = {weight.name: weight.grad.numpy().copy() for weight in part.layers.weights.values() if weight.grad is not None}
    return loss.item(), found


def text(config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    return microbatches(seed=0, step=0, num_microbatches=1, microbatch=2, sequence=9, vocab_size=config.vocab_size)


def wide(config: ModelConfig) -> dict[str, np.ndarray]:
    return {name: array.astype(np.float64) for name, array in first_weights(config, 3).items()}


@pytest.mark.parametrize("config", [LLAMA, EXPERTS], ids=lambda config: config.name)
def test_the_loss_is_that_of_the_reference(config: ModelConfig) -> None:
    weights, (ids_MBT, target_MBT) = wide(config), text(config)
    logits_BTV, _ = decoder(config, weights, ids_MBT[0])
    logits_BTV = logits_BTV - logits_BTV.max(-1, keepdims=True)
    logged_BTV = logits_BTV - np.log(np.exp(logits_BTV).sum(-1, keepdims=True))
    expected = -np.take_along_axis(logged_BTV, target_MBT[0][:, :, None], -1).sum()
    np.testing.assert_allclose(loss_of(config, weights)[0], expected, rtol=1e-13)


@pytest.mark.parametrize("config", [LLAMA, EXPERTS, GPT], ids=lambda config: config.name)
def test_gradients_are_slopes_of_the_loss(config: ModelConfig) -> None:
    weights, rng = wide(config), np.random.default_rng(1)
    _, gradients = loss_of(config, weights)
    assert set(gradients) == set(config.weight_shapes())
    step = 1e-5
    for name in weights:  # each weight by itself, so that none hides behind a larger one
        way = rng.standard_normal(weights[name].shape)
        above, below = (loss_of(config, weights | {name: weights[name] + sign * step * way})[0] for sign in (1, -1))
        slope, found = (above - below) / (2 * step), float((gradients[name] * way).sum())
        assert abs(slope - found) <= 1e-6 * max(1.0, abs(slope)), name


def test_cutting_a_weight_and_joining_it_changes_nothing() -> None:
    for config in (LLAMA, EXPERTS, GPT):
        for name, whole in first_weights(config, 0).items():
            cut = cut_of(name)
            parts = {(t, e): cut.part(whole, (t, 2), (e, 2)) for t in range(2) for e in range(2)}
            assert np.array_equal(cut.join(parts, 2, 2), whole)
            sizes = (2 if cut.axis is not None else 1) * (2 if cut.expert else 1)
            assert parts[1, 1].size * sizes == whole.size


def test_the_text_comes_in_the_order_of_the_seed() -> None:
    one, again, other = (
        microbatches(seed=seed, step=4, num_microbatches=2, microbatch=3, sequence=7, vocab_size=64) for seed in (5, 5, 6)
    )
    assert np.array_equal(one[0], again[0])
    assert not np.array_equal(one[0], other[0])
    assert np.array_equal(one[0][..., 1:], one[1][..., :-1])
    ids, alphabet = read_text()
    assert bytes(alphabet[i] for i in ids[-12:]).endswith(b"at all.\n")


def test_a_vocabulary_smaller_than_the_alphabet_is_refused() -> None:
    with pytest.raises(InputError, match="different bytes"):
        microbatches(seed=0, step=0, num_microbatches=1, microbatch=1, sequence=4, vocab_size=8)


def test_a_missing_text_is_refused(tmp_path: Any) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_text(tmp_path / "nothing.txt")


def test_an_architecture_that_is_not_trained_here_is_refused() -> None:
    config = preset("deepseek-ai/DeepSeek-V3")
    assert config is not None
    with pytest.raises(InputError, match="latent attention cannot be trained here"):
        check_model(config)
