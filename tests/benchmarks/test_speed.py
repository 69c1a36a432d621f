"""The speed of every implementation of every component at its named shapes: `pytest --benchmark`.

One test per component, shape, dtype and implementation, generated from the catalog; `-k attention.gqa` selects by id. A
wrong kernel fails and is not timed. Libraries that choose slow code by the processor's vendor are timed as shipped and once
more, unlocked, in a process of their own. Without the flag there is one skipped test per component.
"""

import pytest

from llmlab.harness.pytest_plugin import is_asked_for
from llmlab.reference.catalog import component_ids

pytestmark = pytest.mark.speed


def pytest_generate_tests(metafunc):
    if "case" not in metafunc.fixturenames:
        return
    if not is_asked_for(metafunc.config):
        metafunc.parametrize("case", [pytest.param(None, id=component_id) for component_id in component_ids()])
        return
    from llmlab.harness.machine import describe
    from llmlab.harness.timing import bench
    from llmlab.harness.timing.unlocked import why_not
    from llmlab.reference.catalog import components

    expand = list if why_not(describe()) else bench.with_unlocked
    effort = bench.QUICK if metafunc.config.getoption("llmlab_quick") else bench.FULL
    metafunc.parametrize(
        "case",
        [
            pytest.param((component, shape, dtype, one.name), id=" ".join(filter(None, (name, shape, dtype, one.name))))
            for name, component in components().items()
            for shape, dtype in bench.cases(component, bench.default_dtypes(), None, effort)
            for one in expand(bench.implementations_of(component))
        ],
    )


@pytest.fixture(scope="session")
def peers():
    """The process that times libraries without their vendor check."""
    from llmlab.harness.machine import describe
    from llmlab.harness.timing.peer_process import PeerProcess

    with PeerProcess(describe()) as process:
        yield process


@pytest.fixture(scope="session")
def peaks_of(speed_run):
    """Measured peaks by device; measured once and kept in the results file."""
    from llmlab.harness.timing import results
    from llmlab.harness.timing.peaks import peaks

    known = {}

    def find(device):
        if device not in known:
            known[device] = peaks(device, path=speed_run.path or results.default_path(), quick=speed_run.quick)
        return known[device]

    return find


@pytest.fixture(scope="module")
def pages():
    """Outputs find pages already in the process."""
    from llmlab.harness.timing import bench

    with bench.warm_allocator():
        yield
    bench.forget_case()


@pytest.mark.filterwarnings("ignore:Benchmark fixture was not used")  # a wrong kernel is not timed
@pytest.mark.usefixtures("pages")
def test_speed(case, benchmark, speed_run, peaks_of, peers):
    from llmlab.harness.timing import bench
    from llmlab.harness.timing.beside import measured

    component, shape, dtype, name = case
    effort = bench.QUICK if speed_run.quick else bench.FULL
    timer = bench.timer_of(benchmark, effort)
    options = {"effort": effort, "timer": timer, "peaks_of": peaks_of, "beside": measured, "peers": peers, "only": name}
    found = next(bench.bench_case(component, shape, dtype, **options), None)
    if found is None:
        pytest.skip("this library runs the same code unlocked, or was skipped as shipped")
    if isinstance(found, bench.Skipped):
        speed_run.skipped.append(found)
        pytest.skip(found.why)
    speed_run.records.append(found)
    benchmark.extra_info.update(found.as_dict())
    assert found.correct, f"{component.id} {name} {dtype}: error {found.error} of the allowed; {found.checked}"
