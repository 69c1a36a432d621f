"""What only DeepSeek-V3 has."""

from itertools import combinations

import numpy as np
import pytest

from llmlab.harness.tolerance import error_of
from llmlab.reference.errors import InputError
from llmlab.reference.models._architecture import unpack
from llmlab.reference.models._blocks import drawn, latent_attention, rotated
from llmlab.reference.models._config import ModelConfig
from llmlab.reference.models._experts import routed, within_best_groups
from llmlab.reference.models._multi_token import multi_token, multi_token_shapes
from llmlab.reference.models._presets import preset
from llmlab.reference.models.deepseek import ARCHITECTURE


def test_the_expansion_may_be_multiplied_into_queries_and_outputs_instead() -> None:
    """Section 2.1.2 of the V2 paper: attention over latents themselves, all heads sharing them, gives the same."""
    config, weights = drawn(ARCHITECTURE, "deepseek-v3")
    _, (own, *_) = unpack(config, weights)
    m, N, T = config.latent, config.num_attention_heads, 5
    assert m is not None
    h = np.random.default_rng(0).standard_normal((1, T, 24))
    expected, (latent, key) = latent_attention(config, own, h, None, layer=0)

    def normed(x: np.ndarray) -> np.ndarray:
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + config.rms_norm_eps)

    c = normed(h @ own["self_attn.q_a_proj.weight"].T) * own["self_attn.q_a_norm.weight"]
    q = (c @ own["self_attn.q_b_proj.weight"].T).reshape(1, T, N, -1)
    up = own["self_attn.kv_b_proj.weight"].reshape(N, m.nope_width + m.value_width, m.kv_rank)
    absorbed = np.einsum("btnh,nhc->btnc", q[..., : m.nope_width], up[:, : m.nope_width])
    scores = np.einsum("btnc,bsc->bnts", absorbed, latent)
    scores += np.einsum("btnr,bsr->bnts", rotated(config, q[..., m.nope_width :], 0), key)
    scores = np.where(np.tri(T, dtype=bool), scores * (m.nope_width + m.rope_width) ** -0.5, -np.inf)
    weight = np.exp(scores - scores.max(-1, keepdims=True))
    weight /= weight.sum(-1, keepdims=True)
    mixed = np.einsum("bnts,bsc->btnc", weight, latent)
    out = np.einsum("btnc,nhc->btnh", mixed, up[:, m.nope_width :]).reshape(1, T, -1)
    assert error_of(out @ own["self_attn.o_proj.weight"].T, expected) < 1e-13


def test_kept_groups_are_the_best_by_their_two_best_of_all_choices() -> None:
    rank = np.random.default_rng(0).standard_normal((2, 3, 8))
    left = within_best_groups(rank, 4, 2)
    for row, kept in zip(rank.reshape(-1, 4, 2), left.reshape(-1, 4, 2)):
        best = max(combinations(range(4), 2), key=lambda pair: sum(row[list(pair)].sum(-1)))
        assert np.flatnonzero(np.isfinite(kept[:, 0])).tolist() == list(best)


def test_a_correction_chooses_but_does_not_weigh() -> None:
    config, weights = drawn(ARCHITECTURE, "deepseek-v3")
    _, layers = unpack(config, weights)
    h = np.random.default_rng(0).standard_normal((1, 5, 24))
    bias = np.zeros(8)
    bias[[2, 3]] = 10.0
    own = layers[1] | {"mlp.gate.e_score_correction_bias": bias}
    chosen, weight = routed(config, own, h)
    assert np.all(np.isin(chosen[..., :2], (2, 3)))
    score = 1 / (1 + np.exp(-h @ own["mlp.gate.weight"].T))
    picked = np.take_along_axis(score, chosen, -1)
    assert error_of(weight, 2.5 * picked / picked.sum(-1, keepdims=True)) < 1e-14


def test_groups_that_do_not_divide_the_experts_are_refused() -> None:
    with pytest.raises(InputError, match="n_group"):
        ModelConfig.from_dict({**ARCHITECTURE.tiny["deepseek-v3"], "n_group": 3})


@pytest.mark.parametrize("modules", [1, 2])
def test_modules_predict_further_like_transformers_layers_put_together(modules: int) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    pytest.importorskip("transformers", reason="needs transformers")
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer, DeepseekV3RMSNorm

    from llmlab.harness.oracles.models._causal_lm import causal_lm

    config, weights = drawn(ARCHITECTURE, "deepseek-v3")
    config = ModelConfig(**{**vars(config), "num_nextn_predict_layers": modules})
    rng = np.random.default_rng(5)
    extra = {name: 0.2 * rng.standard_normal(shape) for name, shape in multi_token_shapes(config).items()}
    ids = rng.integers(0, 37, (2, 7))
    model = causal_lm(config, weights)
    hidden: list = []
    model.model.layers[-1].register_forward_hook(lambda module, args, output: hidden.append(output))
    with torch.no_grad():
        model(torch.from_numpy(ids))
        x = hidden[0]
        for k, ours in enumerate(multi_token(config, weights | extra, ids), start=1):
            prefix = f"model.layers.{1 + k}."
            own = {name.removeprefix(prefix): torch.tensor(a) for name, a in extra.items() if name.startswith(prefix)}
            layer = DeepseekV3DecoderLayer(model.config, 1).double().eval()
            layer.load_state_dict({name: own[name] for name in layer.state_dict()})

            def normed(name: str, states, own=own):  # type: ignore[no-untyped-def]
                norm = DeepseekV3RMSNorm(24, eps=config.rms_norm_eps).double()
                norm.load_state_dict({"weight": own[f"{name}.weight"]})
                return norm(states)

            T = ids.shape[1] - k
            table = model.model.embed_tokens(torch.from_numpy(ids[:, k:]))
            both = torch.cat([normed("enorm", table), normed("hnorm", x[:, :T])], dim=-1) @ own["eh_proj.weight"].T
            places = model.model.rotary_emb(both, torch.arange(T)[None])
            mask = torch.full((T, T), -torch.inf, dtype=torch.float64).triu(1)[None, None]
            x = layer(both, attention_mask=mask, position_embeddings=places)
            theirs = model.lm_head(normed("shared_head.norm", x)).numpy()
            assert ours.shape == (2, T, 37)
            assert error_of(ours, theirs) <= 8 * np.finfo(np.float32).eps * np.abs(theirs).max()


def test_a_model_without_modules_or_text_too_short_is_named() -> None:
    config, weights = drawn(ARCHITECTURE, "deepseek-v3")
    with pytest.raises(ValueError, match="1 modules predict further over 1 tokens"):
        multi_token(config, weights, np.zeros((1, 1), int))


def test_the_published_module_has_eleven_and_a_half_billion_weights_of_its_own() -> None:
    """The release's README_WEIGHTS: 671B, of which a token meets 36.7B without the embedding's 0.9B, and 11.5B beside them."""
    config = preset("DeepSeek-V3")
    assert config is not None
    module = sum(int(np.prod(shape)) for shape in multi_token_shapes(config).values())
    assert module == pytest.approx(11.5e9, rel=0.01)
    assert round(config.num_parameters / 1e9) == 671
    assert (config.num_active_parameters - config.vocab_size * config.hidden_size) == pytest.approx(36.7e9, rel=0.01)
