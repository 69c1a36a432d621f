"""The screen of many plans gives the very bits of the evaluation of each."""

import random
from dataclasses import fields, replace

import numpy as np
import pytest

from llmlab.reference.errors import InputError
from llmlab.simulator.hardware.device import load_device_sheet
from llmlab.simulator.model.description import load_model
from llmlab.simulator.training import memory, step
from llmlab.simulator.training.pieces import Piece, Setting
from llmlab.simulator.training.plan import OPTIMIZERS, PRECISIONS, SCHEDULES, ParallelPlan, framework, gpt
from llmlab.simulator.training.screen import Plans, distinct, screen, timed
from llmlab.simulator.training.search import Choices, plan_space
from llmlab.simulator.training.step import network_of, predict_step

PIECES = [value for module in (memory, step) for value in vars(module).values() if isinstance(value, Piece)]


def random_plans(model, name, count, seed):
    """Plans that can run, every field drawn."""
    draw, found = random.Random(seed), []
    while len(found) < count:
        tensor = draw.choice(["1d", "1d", "1d", "2d", "2.5d", "3d"])
        depth = 2 if tensor == "2.5d" else 1
        side = draw.choice([1, 2])
        plan = ParallelPlan(
            dp=draw.choice([1, 2, 3, 8]),
            tp={"1d": draw.choice([1, 2, 4, 8]), "2d": side**2, "2.5d": 2 * side**2, "3d": side**3}[tensor],
            pp=draw.choice([1, 2, 3, 4, 6, 8]),
            cp=draw.choice([1, 1, 2]),
            ep=draw.choice([1, 1, 2, 4]),
            virtual_stages=draw.choice([1, 1, 2, 3]),
            sequence_parallel=draw.random() < 0.5,
            zero_stage=draw.choice([0, 1, 2, 3]),
            shard_over=draw.choice([0, 0, 2]),
            microbatch=draw.choice([1, 2, 4]),
            global_batch=draw.choice([96, 192]),
            sequence=draw.choice([1024, 2048]),
            recompute=draw.choice(["none", "selective", "full"]),
            precision=draw.choice(PRECISIONS),
            optimizer=draw.choice(list(OPTIMIZERS)),
            schedule=draw.choice(SCHEDULES),
            offload=draw.random() < 0.3,
            framework=name,
            offload_weights=draw.random() < 0.3,
            tensor=tensor,
            tensor_depth=depth,
        )
        try:
            plan.check(model)
        except InputError:
            continue
        found.append(plan)
    return found


def setting_of(model, device, name):
    sheet, habits = load_device_sheet(device), framework(name)
    return Setting(model, sheet, habits, network_of(sheet, habits))


@pytest.mark.parametrize("name", ["megatron", "deepspeed-zero3", "fsdp", "gpipe", "deepspeed-moe"])
@pytest.mark.parametrize("model", [gpt(24, 1024, 16, 51200, 2048), load_model("Qwen/Qwen3-30B-A3B")], ids=["dense", "experts"])
def test_screening_gives_the_bits_of_the_full_evaluation(model, name):
    plans, setting = random_plans(model, name, 150, seed=7), setting_of(model, "b200", name)
    found, parts = screen(setting, Plans.of(plans)), timed(setting, Plans.of(plans))
    for number, plan in enumerate(plans):
        one = predict_step(model, plan, setting.device, fit_memory=False)
        assert one.memory.total_bytes == found.total_bytes[number]
        assert one.seconds == found.seconds[number]
        for item, part in zip(fields(one.breakdown), parts):
            assert getattr(one.breakdown, item.name) == np.broadcast_to(part, len(plans))[number]


@pytest.mark.parametrize("one", PIECES)
def test_a_piece_reads_the_fields_it_names_and_no_others(one):
    class Watched:
        def __init__(self, plan):
            object.__setattr__(self, "plan", plan)

        def __getattr__(self, name):
            if name in {item.name for item in fields(ParallelPlan)} | {"microbatches"}:
                assert name in one.fields or name == "framework", name
                return getattr(self.plan, name)
            found = getattr(ParallelPlan, name)
            return found.fget(self) if isinstance(found, property) else lambda *given: found(self, *given)

    model = load_model("Qwen/Qwen3-30B-A3B")
    setting = setting_of(model, "b200", "deepspeed-moe")
    for plan in random_plans(model, "deepspeed-moe", 60, seed=3):
        assert one.function(setting, Watched(plan)) == one.function(setting, plan)


def test_plans_that_do_not_fit_are_never_timed():
    model = gpt(24, 4096, 32, 51200, 2048)
    setting = setting_of(model, "a100", "megatron")
    plans = plan_space(model, setting.device, 8, 16, 2048, setting.habits, Choices())
    found = screen(setting, plans, fit_bytes=setting.device.hbm_bytes)
    assert 0 < np.isinf(found.seconds).sum() < plans.count
    assert (np.isinf(found.seconds) == (found.total_bytes > setting.device.hbm_bytes)).all()


def test_plans_come_back_as_they_went_in():
    plans = random_plans(gpt(24, 1024, 16, 51200, 2048), "megatron", 50, seed=1)
    many = Plans.of(plans)
    assert [many.plan(number) for number in range(many.count)] == plans
    assert [many.take(np.array([3, 1])).plan(number) for number in range(2)] == [plans[3], plans[1]]
    assert many.with_microbatches.value("microbatches", 5) == plans[5].microbatches


def test_distinct_codes_are_found_by_table_and_by_sorting():
    codes = np.random.default_rng(0).integers(0, 50, 300)
    for size in (50, 10**9):
        first, which = distinct(codes, size)
        assert len(first) == len(set(codes.tolist()))
        assert (codes[first][which] == codes).all()


def test_one_wrong_bit_would_be_seen():
    model = gpt(24, 1024, 16, 51200, 2048)
    setting = setting_of(model, "a100", "megatron")
    plan = random_plans(model, "megatron", 1, seed=2)[0]
    found = screen(setting, Plans.of([plan, replace(plan, global_batch=2 * plan.global_batch)]))
    assert found.seconds[0] != np.nextafter(found.seconds[0], 1e9)
    assert found.seconds[0] < found.seconds[1]
