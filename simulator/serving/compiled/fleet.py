"""A fleet on the compiled loop: one pool of equal replicas that serve whole requests, with outages and retries.

What else a fleet may have (unequal pools, scaling, prefill and decode workers, a shared store of prefixes, late reports,
sessions) stays with `fleet.FleetCluster`; the log of what is played here is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields

import numpy as np

from llmlab.reference.serving.router import Router
from llmlab.simulator.serving.cluster import Log
from llmlab.simulator.serving.compiled.run import CompiledCluster, reason_against
from llmlab.simulator.serving.deployment import Site
from llmlab.simulator.serving.energy import Power, balance_rows
from llmlab.simulator.serving.failures import NANOSECONDS, Outage
from llmlab.simulator.serving.fleet import FleetLog
from llmlab.simulator.serving.pools import Fleet
from llmlab.simulator.serving.slo import Watch
from llmlab.simulator.workload.workload import Workload

FLEET = {"pools", "router", "staleness_s", "failures", "retries", "transfer", "prefix_pool"}
POOL = {"deployment", "role", "scaling", "name"}
"""What a fleet and a pool consist of; one that has more is not known."""


def reason_against_fleet(workload: Workload, fleet: Fleet, sites: Sequence[Site], router: Router) -> str | None:
    """Why the compiled loop cannot play this, or None where it can."""
    unknown = {field.name for field in fields(fleet)} - FLEET | {field.name for field in fields(fleet.pools[0])} - POOL
    if unknown:
        return f"a fleet with {', '.join(sorted(unknown))}"
    if len(sites) > 1:
        return "several pools"
    if fleet.pools[0].role != "both":
        return f"role {fleet.pools[0].role}"
    if fleet.pools[0].scaling is not None:
        return "scaling"
    if fleet.prefix_pool is not None:
        return "a shared store of prefixes"
    return reason_against(workload, [sites[0].new_scheduler()], sites[0].cost, router)


class CompiledFleet(CompiledCluster):
    """The same as `fleet.FleetCluster`, for what `reason_against_fleet` finds nothing against."""

    def __init__(
        self,
        workload: Workload,
        fleet: Fleet,
        sites: Sequence[Site],
        router: Router,
        *,
        outages: Sequence[Outage] = (),
        stretch: float = 1.0,
        record_steps: bool = False,
        watch: Watch | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        (site,) = sites
        self.outages = list(outages)
        super().__init__(
            workload,
            [site.new_scheduler() for _ in range(site.deployment.replicas)],
            site.cost,
            router,
            stretch=stretch,
            block_tokens=site.deployment.block_tokens if site.deployment.prefix_caching else 0,
            frontend_ns=round(site.engine.host_request_s * NANOSECONDS),
            lag_steps=site.engine.scheduling_lag_steps,
            longest_tokens=site.longest_tokens,
            record_steps=record_steps,
            watch=watch,
            progress=progress,
            outages=outages,
            retries=fleet.retries,
            power=Power.of(site.profile.device, balance_rows(site.cost)),
            devices=site.deployment.devices // site.deployment.replicas,
        )

    def play(self) -> tuple[Log, FleetLog]:
        """Simulate until every request is finished, refused or failed, or the watch gives up."""
        log, run, world = self.run(), self.world.run[0], self.world
        turned = world.faults[world.faults["played"] == 1][["at_ns", "replica", "fails"]].tolist()
        return log, FleetLog(
            retries=np.minimum(world.requests["failures"], int(run["limit"])).tolist(),
            busy_j=world.meters["busy_j"].tolist(),
            computing_ns=world.meters["computing_ns"].tolist(),
            samples=[self.sample_of(1)],
            fetched_tokens=[0] * len(self.workload),
            turned=[(0, replica, "up") for replica in range(len(world.replicas))]
            + [(when_ns, replica, "down" if fails else "up") for when_ns, replica, fails in turned],
            outages=self.outages,
            end_ns=int(run["now"]),
        )
