"""Laws of rank maps, and the example people draw: 64 GPUs as DP 2 x PP 4 x TP 8."""

import itertools

import pytest

from llmlab.reference.parallel.mesh import MEGATRON_ORDER, Mesh, expert_mesh, mesh_groups, mesh_of


def test_64_gpus_as_2_4_8_keep_tensor_groups_in_a_node_and_stages_apart():
    mesh = mesh_of(64, tp=8, pp=4)
    assert mesh.sizes["dp"] == 2
    assert mesh.groups("tp") == [list(range(first, first + 8)) for first in range(0, 64, 8)]
    assert mesh.groups("dp")[:2] == [[0, 8], [1, 9]]
    assert mesh.groups("pp")[:2] == [[0, 16, 32, 48], [1, 17, 33, 49]]
    assert [mesh.nodes_spanned(8, axis) for axis in ("tp", "dp", "pp")] == [1, 2, 4]
    assert mesh.coordinates(63) == {"tp": 7, "cp": 0, "ep": 0, "dp": 1, "pp": 3}
    assert mesh.groups("tp", "pp")[0] == [*range(8), *range(16, 24), *range(32, 40), *range(48, 56)]  # one model replica


def test_other_order_spreads_the_tensor_group_over_nodes():
    assert Mesh({"dp": 2, "pp": 4, "tp": 8}).nodes_spanned(8, "tp") == 8


@pytest.mark.parametrize("order", list(itertools.permutations(("tp", "dp", "pp"))))
def test_rank_and_coordinates_undo_each_other_in_every_order(order):
    mesh = Mesh({"tp": 2, "dp": 3, "pp": 4}, order)
    assert [mesh.rank(mesh.coordinates(rank)) for rank in range(24)] == list(range(24))
    for rank in range(24):
        assert int(mesh.ranks[tuple(mesh.coordinates(rank).values())]) == rank


def test_groups_along_any_axes_are_a_partition_and_meet_the_others_once():
    mesh = mesh_of(48, tp=2, cp=2, pp=3)
    for count in range(len(MEGATRON_ORDER) + 1):
        for axes in itertools.combinations(MEGATRON_ORDER, count):
            groups = mesh.groups(*axes)
            assert sorted(itertools.chain(*groups)) == list(range(48))
            others = mesh.groups(*[axis for axis in MEGATRON_ORDER if axis not in axes])
            assert all(len(set(one) & set(other)) == 1 for one in groups for other in others)
    assert mesh.group_of(5, "tp") == [4, 5]


def test_experts_share_out_a_stages_ranks_and_keep_its_pipeline_groups():
    dense = mesh_of(64, tp=2, cp=2, pp=2)
    experts = expert_mesh(dense, ep=8)
    assert experts.sizes == {"tp": 1, "ep": 8, "dp": 4, "pp": 2}
    assert experts.groups("pp") == dense.groups("pp")
    assert experts.groups("ep")[0] == list(range(8))
    assert expert_mesh(dense, ep=4, etp=2).groups("ep")[0] == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: mesh_of(64, tp=8, pp=3), "64 ranks are not a multiple of tp 8 x pp 3"),
        (lambda: mesh_of(64, tp=8, dp=3), "dp=3"),
        (lambda: mesh_of(8, tp=0), "not a multiple"),
        (lambda: Mesh({"tp": 0}), "below 1"),
        (lambda: Mesh({"tp": 2}, ("tp", "tp")), "twice"),
        (lambda: Mesh({"tp": 2, "up": 2}, ("tp",)), "lacks up"),
        (lambda: Mesh({"tp": 2}).rank({"tp": 2}), "tp=2"),
        (lambda: Mesh({"tp": 2}).rank({"pp": 0}), "lacks pp"),
        (lambda: Mesh({"tp": 2}).coordinates(2), "rank=2"),
        (lambda: Mesh({"tp": 2}).groups("dp"), "lacks dp"),
        (lambda: Mesh({"tp": 2}).nodes_spanned(0, "tp"), "ranks_per_node=0"),
        (lambda: expert_mesh(mesh_of(16, tp=2), ep=3), "ep=3"),
        (lambda: expert_mesh(Mesh({"pp": 2, "dp": 2}), ep=2), "slowest"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_numbers(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_groups_by_name():
    found = mesh_groups(sizes={"tp": 2, "dp": 2}, order=["dp", "tp"], axes=[["tp"], ["tp", "dp"]])
    assert found == {"tp": [[0, 2], [1, 3]], "tp-dp": [[0, 1, 2, 3]]}


@pytest.mark.parametrize("order", [("tp", "dp"), ("dp", "tp"), ("pp", "dp", "tp")])
def test_real_process_groups_of_a_device_mesh_have_the_same_members(order):
    pytest.importorskip("torch")
    from llmlab.harness.oracles.parallel.mesh import device_mesh_groups
    from llmlab.kernels.parallel import _world

    sizes = {"tp": 2, "dp": 2} if len(order) == 2 else {"pp": 1, "dp": 3, "tp": 1}
    mesh = Mesh(sizes, order)
    found = _world.run(device_mesh_groups, [{"sizes": sizes, "order": order}] * mesh.size)
    assert found == [{axis: mesh.group_of(rank, axis) for axis in order} for rank in range(mesh.size)]
