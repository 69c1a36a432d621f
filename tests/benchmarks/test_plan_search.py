"""Speed of pricing training plans: one by one, screened together, and whole searches: `pytest --benchmark -k plan_search`."""

import numpy as np
import pytest

from llmlab.simulator.hardware.device import load_device_sheet
from llmlab.simulator.model.description import load_model
from llmlab.simulator.training.pieces import Setting
from llmlab.simulator.training.plan import framework, gpt
from llmlab.simulator.training.screen import screen
from llmlab.simulator.training.search import Choices, plan_space, search
from llmlab.simulator.training.step import network_of, predict_step

pytestmark = pytest.mark.speed

DEVICE, HABITS = load_device_sheet("h100"), framework("megatron")
SEARCHES = {
    "llama-3.1-70b on 1024 h100": (lambda: load_model("meta-llama/Llama-3.1-70B"), "h100", 1024, 1024, 8192),
    "llama-3.1-405b on 16384 h100": (lambda: load_model("meta-llama/Llama-3.1-405B"), "h100", 16384, 2048, 8192),
    "gpt-1t on 3072 a100": (lambda: gpt(128, 25600, 160, 51200, 2048), "a100", 3072, 1536, 2048),
}


def space():
    model = load_model("meta-llama/Llama-3.1-70B")
    plans = plan_space(model, DEVICE, 1024, 1024, 8192, HABITS, Choices())
    return Setting(model, DEVICE, HABITS, network_of(DEVICE, HABITS)), plans


def test_plan_search_one_by_one(benchmark):
    setting, plans = space()
    some = [plans.plan(number) for number in np.random.default_rng(0).integers(0, plans.count, 1000)]

    def price():
        for plan in some:
            predict_step(setting.model, plan, DEVICE, fit_memory=False)

    benchmark.pedantic(price, rounds=5, warmup_rounds=1)
    benchmark.extra_info["plans_per_s"] = len(some) / benchmark.stats.stats.min


def test_plan_search_screened(benchmark):
    setting, plans = space()
    benchmark.pedantic(screen, args=(setting, plans), rounds=3, warmup_rounds=1)
    benchmark.extra_info["plans_per_s"] = plans.count / benchmark.stats.stats.min


@pytest.mark.parametrize("name", SEARCHES)
def test_plan_search_whole(name, benchmark):
    make, *sizes = SEARCHES[name]
    model = make()
    found = benchmark.pedantic(lambda: search(model, *sizes), rounds=1)
    benchmark.extra_info |= {"plans": found.considered, "do_not_fit": found.too_big, "best_s": found.best[0].seconds}
