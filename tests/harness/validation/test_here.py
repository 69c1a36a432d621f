"""`validate here` on a machine whose clock is a formula: what it predicts is what that machine then does."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch: the engine runs on it")

from llmlab.harness.runtime.engine import Engine  # noqa: E402
from llmlab.harness.validation import here  # noqa: E402
from llmlab.reference.errors import InputError  # noqa: E402
from llmlab.reference.models._config import ModelConfig  # noqa: E402
from llmlab.simulator.cost.curves import Curve  # noqa: E402
from llmlab.simulator.hardware.profile import load_device  # noqa: E402
from llmlab.simulator.model.description import load_model  # noqa: E402

EFFORT = here.Effort(calibrate_s=20.0, loads=(0.2, 0.6, 1.3), run_s=20.0, fewest_requests=20, simulations=12)
SHORT = here.Effort(calibrate_s=3.0, loads=(0.3, 1.3), run_s=2.0, fewest_requests=12, simulations=4)


@dataclass
class Machine:
    """A model that answers nothing and a clock that its steps move: weights, attention and, where asked, noise."""

    noise: float = 0.0
    slower: float = 1.0
    now: float = 0.0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    device: Any = field(default_factory=lambda: torch.device("cpu"))

    def new_cache(self, num_blocks: int, block_tokens: int) -> None:
        return None

    def forward(self, ids_T: Any, positions_T: Any, cache: Any, starts: list[int], tables: Any, contexts: list[int]) -> Any:
        tokens = len(ids_T)
        seconds = 0.004 + 0.008 * max(1.0, tokens / 24) + 1.5e-6 * sum(contexts)
        self.now += self.slower * seconds * float(np.exp(self.noise * self.rng.standard_normal()))
        return torch.zeros(len(contexts), 1).expand(-1, 4)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def clock(self) -> float:
        self.now += 1e-6  # looking at the clock takes time too, or an idle engine would look for ever
        return self.now

    def engine(self) -> Engine:
        return Engine(self, here.new_scheduler(), clock=self.clock, sleep=self.sleep)


def validate(machine: Machine, seed: int = 0, effort: here.Effort = EFFORT) -> dict[str, Any]:
    return here.validate_here(effort=effort, make_engine=machine.engine, threads=1, device="cpu", seed=seed)


@pytest.fixture(autouse=True)
def _no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMLAB_DATA", raising=False)


def test_a_steady_machine_does_what_was_predicted() -> None:
    result = validate(Machine())
    below = [row for row in result["rows"] if not row["saturated"]]
    errors = [abs(row["predicted"] / row["measured"] - 1) for row in below]
    assert np.median(errors) < 0.02
    assert max(errors) < 0.08
    assert result["summary"]["met"] == {"ttft": True, "tpot": True, "e2e": True}
    assert result["summary"]["coverage"] > 0.85


def test_a_noisy_machine_stays_within_its_intervals() -> None:
    result = validate(Machine(noise=0.15))
    assert result["summary"]["met"] == {"ttft": True, "tpot": True, "e2e": True}
    assert result["summary"]["coverage"] >= 0.7


def test_a_machine_that_slows_down_after_calibration_is_seen() -> None:
    machine = Machine()
    slow_down = machine.engine

    def engine() -> Engine:
        machine.slower = 1.0 if machine.now < EFFORT.calibrate_s - 1 else 1.5
        return slow_down()

    machine.engine = engine  # type: ignore[method-assign]
    result = validate(machine)
    assert not all(result["summary"]["met"].values())
    assert result["summary"]["coverage_below_saturation"] < 0.5


def test_rows_have_the_documented_form_and_are_json() -> None:
    result = validate(Machine(), effort=SHORT)
    parsed = json.loads(json.dumps(result, allow_nan=False))
    assert set(parsed) == {"rows", "excluded", "summary"}
    wanted = {"row_id", "metric", "measured", "predicted", "low", "high", "source", "fitted", "load", "saturated"}
    for row in parsed["rows"]:
        assert wanted <= set(row)
        assert row["low"] <= row["predicted"] <= row["high"]
        assert row["fitted"] is False
    assert {row["metric"] for row in parsed["rows"]} == set(here.METRICS)
    assert [row["saturated"] for row in parsed["rows"][:: len(here.METRICS)]] == [False, True]
    result["summary"]["others_while_calibrating"] = 0.0
    quiet = {**result, "rows": [row | {"others": 0.0} for row in result["rows"]]}
    busy = {**result, "rows": [row | {"others": 0.5} for row in result["rows"]]}
    assert [len(list(here.tables(one))) for one in (quiet, busy)] == [2, 3]
    assert any("say little" in title for title, _ in here.tables(busy))


def test_the_same_machine_and_seed_give_the_same_figures() -> None:
    one, two = (validate(Machine(noise=0.1), seed=3, effort=SHORT)["rows"] for _ in range(2))
    keys = ("measured", "predicted", "low", "high")
    assert [[row[key] for key in keys] for row in one] == [[row[key] for key in keys] for row in two]


def test_a_profile_predicts_without_timing_a_step(tmp_path: Path) -> None:
    host = Curve("host", {"step_s": 2e-3, "request_s": 1e-5})
    device = load_device("a100")
    replace(device, curves={**device.curves, "host": host}).save(tmp_path / "machine.json")
    requests = here.like_trace(None, np.random.default_rng(0)).first(40)
    guesses = []
    for name in ("llmlab/llama-50m", "llmlab/llama-150m"):
        composed = here.OperatorSteps.read(tmp_path / "machine.json", load_model(name).config, "cpu")
        assert composed.as_dict()["engine"]["host_step_s"] == 2e-3
        guess, low, high = here.predict(requests, composed, simulations=5, seed=0)
        assert all(low[metric] <= guess[metric] <= high[metric] for metric in here.METRICS)
        assert low["tpot_mean_ms"] < high["tpot_mean_ms"]
        guesses.append(guess)
    assert guesses[0]["tpot_mean_ms"] < guesses[1]["tpot_mean_ms"]


def test_requests_come_from_the_trace_scaled_down(tmp_path: Path) -> None:
    path = tmp_path / "tiny.csv"
    rows = "".join(f"{i * i / 9},{i * 100 + 1},{i + 1}\n" for i in range(60))
    path.write_text(f"arrival_s,prompt_tokens,output_tokens\n{rows}")
    requests = here.like_trace(path, np.random.default_rng(0))
    assert requests.name == "tiny.csv"
    assert requests.prompt_tokens[:4].tolist() == [1, 13, 26, 38]
    assert requests.prompt_tokens.max() == here.LONGEST_PROMPT
    part = here.at_load(requests, 4.0, EFFORT, np.random.default_rng(0))
    assert (len(part) - 1) / part.span_s == pytest.approx(4.0)
    gaps = np.diff(part.arrival_ns)
    assert gaps[-1] > gaps[0]  # their pattern is the trace's


def test_without_a_trace_requests_resemble_one() -> None:
    requests = here.like_trace(None, np.random.default_rng(0))
    assert "synthetic" in requests.name
    assert requests.prompt_tokens.mean() * here.LENGTH_SCALE == pytest.approx(1155, rel=0.1)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"threads": 0}, "threads=0"),
        ({"device": "tpu"}, "device='tpu'"),
        ({"trace": "absent.csv"}, "absent.csv"),
        ({"profile": "absent.json"}, "absent.json"),
        ({"model": "no/such"}, "no/such"),
    ],
)
def test_bad_input_is_named(options: dict[str, Any], names: str) -> None:
    with pytest.raises(InputError, match=names):
        here.validate_here(**{"threads": 1, "device": "cpu", **options})


@pytest.mark.slow
def test_the_real_engine_goes_all_the_way() -> None:
    model = ModelConfig("tiny", "llama", 32, 48, 1, 2, 1, 16, vocab_size=64, tie_word_embeddings=True)
    effort = here.Effort(calibrate_s=1.0, loads=(0.2, 1.3), run_s=0.5, fewest_requests=10, simulations=3)
    result = here.validate_here(effort=effort, model=model, threads=1, device="cpu")
    assert len(result["rows"]) == 2 * len(here.METRICS)
    assert all(row["measured"] > 0 and row["predicted"] > 0 for row in result["rows"])
