"""What published columns say of parallelism, and what they mean."""

from __future__ import annotations

import pytest

from llmlab.harness.validation.layouts import Layout, Shared, shared_out
from llmlab.harness.validation.resolve import Unsimulated
from llmlab.harness.validation.rows import MeasuredRow

DUMP = "precision=fp8; moe_tp={}; inferencemax-dump"


def _row(
    other: str = "", instances: str = "", ep: str = "", unread: dict[str, str] | None = None, **stated: float
) -> MeasuredRow:
    texts = {"other_config": other, "n_instances": instances, "ep": ep}
    return MeasuredRow("w", "r", "m", "g", "closed_loop_concurrency", texts, stated, {}, unread or {})


@pytest.mark.parametrize(
    ("row", "layout"),
    [
        (_row(tp=4, n_gpus=4), Layout(4)),
        (_row(n_gpus=1), Layout(1)),
        (_row(tp=2, dp=4, n_gpus=8), Layout(2, replicas=4)),
        (_row(tp=8, n_gpus=8, ep="8"), Layout(8, experts=8)),
        (_row(tp=4, n_gpus=4, ep="2"), Layout(4, experts=2)),
        (_row(tp=1, dp=8, n_gpus=8, ep="8"), Layout(8, 8, 8)),
        (_row(tp=8, dp=8, n_gpus=8), Layout(8, 1, 8)),
        (_row(tp=2, dp=0, n_gpus=2, ep="0"), Layout(2)),
        (_row(dp=8, n_gpus=8, ep="8", unread={"tp": "dp-attention 8"}), Layout(8, 8, 8)),
        (_row(instances="3.0", tp=2, n_gpus=6), Layout(2, replicas=3)),
    ],
)
def test_degrees_are_read(row: MeasuredRow, layout: Layout) -> None:
    assert shared_out(row, moe=True) == Shared(layout)


@pytest.mark.parametrize(
    ("tp", "dp", "ep", "devices", "across", "layout"),
    [
        (64, 1, "8", 64, 8, Layout(8, 8)),
        (1, 64, "8", 64, 8, Layout(8, 8, 8)),
        (4, 4, "16", 16, 1, Layout(4, 4)),
        (8, 1, "8", 8, 1, Layout(8, 8)),
    ],
)
def test_devices_listed_twice_count_once(tp: int, dp: int, ep: str, devices: int, across: int, layout: Layout) -> None:
    row = _row(DUMP.format(across), tp=tp, dp=dp, n_gpus=devices, ep=ep)
    assert shared_out(row, moe=True) == Shared(layout)


def test_a_dense_model_has_no_experts_to_deal() -> None:
    assert shared_out(_row(tp=8, n_gpus=8, ep="8"), moe=False) == Shared(Layout(8))


def test_prefill_and_decode_workers_are_told_apart() -> None:
    text = "P2.0x(tp1.0,dp4.0,ep4.0,bs1.0) D3.0x(tp8.0,dp1.0,ep8.0,bs3.0)"
    found = shared_out(_row(instances=text, concurrency=64), moe=True)
    assert found == Shared(Layout(8, 8, 1, 3), Layout(4, 4, 4, 2))
    assert found.devices == 32
    assert shared_out(_row(instances="1P3D", tp=2), moe=False) == Shared(Layout(2, replicas=3), Layout(2))


def test_workers_of_unstated_size_hold_the_weights_and_share_experts_when_busy() -> None:
    text = "PNonex(tp4.0,dp1.0,ep4.0,bsNone) DNonex(tp32.0,dp1.0,ep4.0,bsNone)"
    quiet, busy = (shared_out(_row(instances=text, concurrency=clients), moe=True).whole for clients in (8, 2048))
    assert quiet == Layout(8, 8, 1, 4)
    assert busy == Layout(32, 32, 32)
    small = shared_out(_row(instances=text.replace("tp32", "tp16"), concurrency=8), moe=True, least=16)
    assert small.whole.devices == 16
    assert small.prefill is not None
    assert small.prefill.devices == 16


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (_row(n_gpus=4), "not stated"),
        (_row(tp=2, pp=2, n_gpus=4), "pipeline"),
        (_row(tp=3, n_gpus=4), "4 devices"),
        (_row(tp=2, n_gpus=8), "1 replicas"),
        (_row(tp=2, n_gpus=2, ep="some"), "ep=some"),
        (_row(n_gpus=2, unread={"tp": "two"}), "tp=two"),
        (_row(tp=2, instances="a few"), "n_instances=a few"),
    ],
)
def test_what_cannot_be_meant_has_a_reason(row: MeasuredRow, why: str) -> None:
    with pytest.raises(Unsimulated, match=why):
        shared_out(row, moe=True)
