"""Every family's layers under the paged steps the engine runs."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: the models run on it")

from llmlab.harness.tolerance import error_of  # noqa: E402
from llmlab.kernels.models._decoder_torch import DecoderTorch, decoder_logits, model_torch  # noqa: E402
from llmlab.kernels.models.llama_torch import LlamaTorch  # noqa: E402
from llmlab.reference.models._architecture import architectures  # noqa: E402
from llmlab.reference.models._blocks import drawn, forward  # noqa: E402

VARIANTS = {name: one for one in architectures().values() for name in one.tiny}
WHOLE_ONLY = [
    name for name in VARIANTS if name.startswith(("bloom", "deepseek", "falcon-rw", "baichuan-13b", "baichuan2", "phi-3 of"))
]
PAGED = [name for name in VARIANTS if name not in WHOLE_ONLY]


@pytest.mark.parametrize("name", VARIANTS)
def test_whole_sequences_score_as_the_reference(name: str) -> None:
    config, weights = drawn(VARIANTS[name], name)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 9))
    given = {key: torch.from_numpy(array) for key, array in weights.items()}
    actual, expected = decoder_logits(config, given, torch.from_numpy(ids)).numpy(), forward(config, weights, ids)
    assert error_of(actual, expected) <= 2.0**-40 * np.abs(expected).max()
    assert error_of(actual * 1.001, expected) > 2.0**-40 * np.abs(expected).max()


@pytest.mark.parametrize("name", PAGED)
def test_ragged_steps_over_scattered_blocks_score_as_the_reference(name: str) -> None:
    """Two requests: a prompt in two chunks beside one that decodes."""
    config, weights = drawn(VARIANTS[name], name)
    model = model_torch(config, weights, dtype=torch.float64)
    cache = model.new_cache(num_blocks=8, block_tokens=3)
    tables = torch.tensor([[5, 0, 7], [2, 6, 1]])
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 8))
    whole = forward(config, weights, ids)
    done = [0, 0]
    for new in ((4, 1), (3, 1), (1, 1)):
        rows = [ids[r, done[r] : done[r] + new[r]] for r in range(2)]
        places = [np.arange(done[r], done[r] + new[r]) for r in range(2)]
        done = [done[r] + new[r] for r in range(2)]
        starts = [0, new[0], new[0] + new[1]]
        tokens, positions = (torch.from_numpy(np.concatenate(one)) for one in (rows, places))
        logits = model.forward(tokens, positions, cache, starts, tables, done).numpy()
        for r in range(2):
            assert error_of(logits[r], whole[r, done[r] - 1]) <= 2.0**-40 * np.abs(whole).max()


@pytest.mark.parametrize("name", WHOLE_ONLY)
def test_what_has_no_paged_steps_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no paged steps"):
        model_torch(*drawn(VARIANTS[name], name))


def test_the_llama_family_keeps_its_fused_products() -> None:
    assert type(model_torch(*drawn(VARIANTS["qwen3"], "qwen3"))) is LlamaTorch
    assert type(model_torch(*drawn(VARIANTS["mixtral"], "mixtral"))) is DecoderTorch
