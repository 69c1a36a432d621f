"""The picture of flows: a row per sender, a bar per phase, and the busiest links below."""

import pytest

from llmlab.reference.errors import InputError
from llmlab.reports.network_figure import network_figure, save_network
from llmlab.simulator.training.programs import run_collective
from llmlab.simulator.training.topology import topology_of


def four(record=True):
    links = topology_of({"nodes": 1, "node": {"devices": 4, "bytes_per_s": 1e9, "latency_s": 0.0}})
    return run_collective(links, "all_reduce", 1e6, range(4), algorithm="ring", record=record)[0]


def test_every_sender_has_a_row_and_every_phase_a_bar():
    above, below = network_figure(four(), "ring").axes
    assert [label.get_text() for label in above.get_yticklabels()] == [f"gpu {i}" for i in range(4)]
    assert len(above.collections) == 4 + 2 * 4
    full = below.images[0].get_array()
    assert full.min() == pytest.approx(1.0)  # a ring keeps every link full
    assert len(below.get_yticklabels()) == 8


def test_only_pictures_are_drawn(tmp_path):
    assert save_network(four(record=False), "ring", tmp_path / "a.png").stat().st_size > 1000
    with pytest.raises(InputError, match="must end in"):
        save_network(four(), "ring", tmp_path / "a.txt")
