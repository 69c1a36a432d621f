"""Four real processes train the step of the reference under every schedule."""

import numpy as np
import pytest

from llmlab.reference.parallel._orders import LOOPED, SCHEDULES
from llmlab.reference.parallel.pipeline import pipeline, same_step

pytest.importorskip("torch", reason="needs torch")


def model(L=16):
    rng = np.random.default_rng(0)
    shapes = {"x_MTD": (8, 2, 3), "target_MTD": (8, 2, 3), "a_LDH": (L, 3, 4), "c_LHD": (L, 4, 3)}
    return {name: rng.standard_normal(shape) / 2 for name, shape in shapes.items()}


@pytest.mark.parametrize("name", SCHEDULES)
def test_four_processes_train_the_step_of_the_reference(name):
    from llmlab.kernels.parallel import pipeline_torch

    given = {"schedule": name, "num_ranks": 4, "virtual": 2 if name in LOOPED else 1, **model()}
    real = pipeline_torch.pipeline(**given)
    assert same_step(pipeline(**given), real)
    assert not same_step(pipeline(**given), {**real, "dc_LHD": real["dc_LHD"] * (1 + 1e-9)})


def test_layers_that_do_not_divide_are_refused():
    from llmlab.kernels.parallel import pipeline_torch

    with pytest.raises(ValueError, match="15 layers do not divide into 4 stages"):
        pipeline_torch.pipeline(schedule="1f1b", num_ranks=4, virtual=1, **model(15))
