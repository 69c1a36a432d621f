"""Plans that cannot run end with one clear line; the rest is closed forms."""

import pytest

from llmlab.reference.errors import InputError
from llmlab.simulator.training.plan import ParallelPlan, framework, framework_names, gpt, plan_of, read_frameworks

MODEL = gpt(24, 1024, 16, 51200, 1024)


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("tp", {"tp": 3}),
        ("pp", {"pp": 25}),
        ("global_batch", {"dp": 3, "global_batch": 64}),
        ("global_batch", {"dp": 1, "microbatch": 5, "global_batch": 64}),
        ("virtual_stages", {"pp": 4, "virtual_stages": 5, "schedule": "interleaved", "global_batch": 16}),
        ("virtual_stages", {"pp": 4, "virtual_stages": 2, "schedule": "1f1b", "global_batch": 16}),
        ("ep", {"ep": 2, "dp": 2, "global_batch": 2}),
        ("sequence", {"cp": 3, "sequence": 1024}),
        ("schedule", {"schedule": "fastest"}),
        ("precision", {"precision": "fp5"}),
        ("recompute", {"recompute": "some"}),
        ("zero_stage", {"zero_stage": 4}),
        ("schedule", {"pp": 3, "schedule": "dualpipe", "global_batch": 12}),
        ("schedule", {"pp": 4, "schedule": "dualpipe-v", "global_batch": 7}),
        ("schedule", {"pp": 4, "schedule": "chimera", "global_batch": 6}),
        ("schedule", {"schedule": "zb-v"}),
        ("pp", {"pp": 5, "schedule": "zb-v", "global_batch": 16}),
        ("offload_weights", {"zero_stage": 2, "offload_weights": True}),
        ("optimizer", {"optimizer": "sgdm"}),
        ("tensor", {"tensor": "4d"}),
        ("tp", {"tensor": "2d", "tp": 8}),
        ("tp", {"tensor": "3d", "tp": 4}),
        ("tp", {"tensor": "2.5d", "tp": 4, "tensor_depth": 3}),
        ("tensor_depth", {"tensor": "2d", "tp": 4, "tensor_depth": 2}),
        ("microbatch", {"tensor": "2d", "tp": 4}),
        ("sequence_parallel", {"tensor": "2d", "tp": 4, "microbatch": 2, "global_batch": 2, "sequence_parallel": True}),
        ("shard_over", {"dp": 4, "global_batch": 4, "zero_stage": 3, "shard_over": 3}),
        ("microbatch", {"microbatch": 0}),
        ("framework", {"framework": "homemade"}),
        ("dp", {"dp": True}),
    ],
)
def test_a_plan_that_cannot_run_is_refused_with_its_field(field, settings):
    with pytest.raises(InputError) as raised:
        ParallelPlan(**settings).check(MODEL)
    assert raised.value.field == field
    assert "\n" not in str(raised.value)


def test_layers_of_stages_add_up():
    for pp in range(1, 12):
        for layers in range(pp, 40):
            stages = ParallelPlan(pp=pp).layers_of_stages(layers)
            assert sum(stages) == layers
            assert len(stages) == pp
            assert min(stages) >= 1 or layers + 2 == 2 * pp


def test_every_framework_makes_a_plan_that_runs():
    for name in framework_names():
        grid = framework(name).tensor != "1d"
        sizes = {"tp": 8 if "3d" in name else 4, "microbatch": 4} if grid else {"tp": 2}
        plan = plan_of(name, dp=2, global_batch=8, sequence=1024, **sizes)
        plan.check(MODEL)
        assert plan.framework == name
        assert framework(name).efficiency("no such generation") > 0


def test_given_settings_beat_habits():
    assert plan_of("fsdp").zero_stage == 3
    assert plan_of("fsdp", zero_stage=1).zero_stage == 1


@pytest.mark.parametrize("text", ["- 1\n", "a: {speed: 1}\n", "a: {like: b}\n", "a: [\n"])
def test_a_bad_framework_file_is_refused(tmp_path, text):
    path = tmp_path / "frameworks.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"frameworks\.yaml"):
        read_frameworks(path)


def test_gpt_refuses_heads_that_do_not_divide():
    with pytest.raises(InputError, match="heads"):
        gpt(2, 100, 3, 10, 10)
