"""A whole fleet: pools of unequal replicas, how requests reach them, what fails, what scales. Plain data, checked when made.

Units: seconds, bytes; prices in US dollars are those of the pools' deployments.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from llmlab.reference.errors import InputError
from llmlab.reference.serving.router import ROUTERS
from llmlab.simulator.serving.deployment import Deployment
from llmlab.simulator.serving.failures import Failures, Retries
from llmlab.simulator.serving.network import Transfer

ROLES = ("both", "prefill", "decode")

PADDED = ("static_batching", "dynamic_batching")
"""Schedulers of padded batches: they cannot go on with a request that was begun elsewhere."""

BOOKKEEPING = ("virtual_token_counter",)
"""Schedulers that count what they serve from a request's arrival on: they cannot adopt one that comes with its cache."""


@dataclass(frozen=True)
class Scaling:
    """When a pool grows and shrinks; `Deployment.replicas` is the most it can have.

    Attributes:
        policy: reactive (unfinished requests per ready replica) or predictive (Holt forecast of arrivals).
        least: replicas that always run.
        interval_s: time between decisions.
        target: unfinished requests per replica to aim at (reactive).
        tolerance: relative deviation that changes nothing (reactive).
        rate_per_replica: requests per second one replica can serve (predictive).
        ahead_s: how far to forecast (predictive); the time a cold start takes where None.
        alpha: weight of the newest observation in the level (predictive).
        beta: weight of the newest change in the trend (predictive).
        patience: decisions a scale-down waits.
        warm: replicas kept loaded but idle, to be taken within `warm_start_s`; fewer where all are needed.
        warm_start_s: from warm to serving.
        load_bytes_per_s: at which one device's weights are read from storage at a cold start.
        engine_start_s: the rest of a cold start: process, compilation, captured graphs.
    """

    policy: str = "reactive"
    least: int = 1
    interval_s: float = 15.0
    target: float = 16.0
    tolerance: float = 0.1
    rate_per_replica: float = 1.0
    ahead_s: float | None = None
    alpha: float = 0.5
    beta: float = 0.3
    patience: int = 4
    warm: int = 0
    warm_start_s: float = 2.0
    load_bytes_per_s: float = 2e9
    engine_start_s: float = 30.0

    def __post_init__(self) -> None:
        if self.policy not in ("reactive", "predictive"):
            raise InputError("scaling", "policy", self.policy, "is neither reactive nor predictive")
        for name in ("interval_s", "target", "rate_per_replica", "load_bytes_per_s", "alpha"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError("scaling", name, getattr(self, name), "must be positive")
        for name in ("least", "warm", "warm_start_s", "engine_start_s", "tolerance", "beta", "ahead_s"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise InputError("scaling", name, value, "must not be negative")
        if self.patience < 1:
            raise InputError("scaling", "patience", self.patience, "must be at least 1")
        for name in ("alpha", "beta", "tolerance"):
            if getattr(self, name) > 1:
                raise InputError("scaling", name, getattr(self, name), "must not pass 1")


@dataclass(frozen=True)
class Pool:
    """Equal replicas with one role.

    Attributes:
        deployment: what each replica is, and how many there are.
        role: both (whole requests), prefill (prompts), or decode (generation).
        scaling: how their number changes; None keeps all running.
        name: for tables; made from the role where empty.
    """

    deployment: Deployment
    role: str = "both"
    scaling: Scaling | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InputError("pool", "role", self.role, f"is none of {', '.join(ROLES)}")
        scheduler = self.deployment.scheduler
        if self.role != "both" and scheduler in PADDED + BOOKKEEPING:
            raise InputError("pool", "scheduler", scheduler, f"cannot share a request with another worker (role {self.role})")
        if self.scaling is not None and self.scaling.least + self.scaling.warm > self.deployment.replicas:
            why = f"least {self.scaling.least} and warm {self.scaling.warm} together need more"
            raise InputError("pool", "replicas", self.deployment.replicas, why)


@dataclass(frozen=True)
class PrefixPool:
    """A store of computed prefixes all workers share, in host memory or on disks (Mooncake's KV cache pool).

    Attributes:
        capacity_bytes: of the whole store; the prefix used longest ago leaves first.
        bytes_per_s: at which one device of a worker reads from it.
        latency_s: of one read.
        least_tokens: a read must save at least this many tokens of prefill.
    """

    capacity_bytes: float = 1e12
    bytes_per_s: float = 20e9
    latency_s: float = 1e-4
    least_tokens: int = 512

    def __post_init__(self) -> None:
        for name in ("capacity_bytes", "bytes_per_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError("prefix_pool", name, getattr(self, name), "must be positive")
        if not 0 <= self.latency_s < float("inf"):
            raise InputError("prefix_pool", "latency_s", self.latency_s, "must not be negative")
        if self.least_tokens < 1:
            raise InputError("prefix_pool", "least_tokens", self.least_tokens, "must be at least 1")


@dataclass(frozen=True)
class Fleet:
    """Everything that serves one model.

    Attributes:
        pools: of one model, with one block size; either all of role both, or at least one prefill and one decode pool.
        router: a key of `ROUTERS` over the replicas that take arrivals. None: least outstanding, or with prefill pools the
            one with the fewest prompt tokens still to compute, reusable prefixes left out.
        staleness_s: age of what a named router knows of its replicas; the assignment of prompts where none is named knows the
            present.
        failures: what fails, and how often.
        retries: what happens to requests whose replica failed.
        transfer: how caches move from prefill to decode workers.
        prefix_pool: a store of prefixes all workers share.
    """

    pools: tuple[Pool, ...]
    router: str | None = None
    staleness_s: float = 0.0
    failures: Failures | None = None
    retries: Retries = field(default_factory=Retries)
    transfer: Transfer = field(default_factory=Transfer)
    prefix_pool: PrefixPool | None = None

    def __post_init__(self) -> None:
        if not self.pools:
            raise InputError("fleet", "pools", [], "needs at least one")
        roles = {pool.role for pool in self.pools}
        if roles != {"both"} and roles != {"prefill", "decode"}:
            raise InputError("fleet", "role", sorted(roles), "must be both everywhere, or prefill and decode")
        if self.router is not None and self.router not in ROUTERS:
            raise InputError("fleet", "router", self.router, f"is none of {', '.join(ROUTERS)}")
        for pool in self.pools:
            if self.failures is not None and pool.deployment.scheduler in PADDED:
                why = "cannot go on with a request that another replica began, so not with failures"
                raise InputError("fleet", "scheduler", pool.deployment.scheduler, why)
        if not 0 <= self.staleness_s < float("inf"):
            raise InputError("fleet", "staleness_s", self.staleness_s, "must not be negative")
        first = self.pools[0].deployment
        for pool in self.pools[1:]:
            for name in ("model", "block_tokens", "prefix_caching", "kv_dtype"):
                if getattr(pool.deployment, name) != getattr(first, name):
                    value = getattr(pool.deployment, name)
                    raise InputError("fleet", name, value, f"differs from the first pool's {getattr(first, name)!r}")

    @property
    def disaggregated(self) -> bool:
        """Whether prompts and generation run on different workers."""
        return self.pools[0].role != "both"

    @property
    def name_of(self) -> list[str]:
        """A name for every pool, each different."""
        names: list[str] = []
        for number, pool in enumerate(self.pools):
            wanted = pool.name or (pool.role if pool.role != "both" else f"pool {number}")
            names.append(wanted if wanted not in names else f"{wanted} {number}")
        return names


def disaggregate(
    deployment: Deployment,
    prefill_workers: int,
    decode_workers: int,
    *,
    prefill_tensor_parallel: int | None = None,
    decode_tensor_parallel: int | None = None,
    decode: Deployment | None = None,
    transfer: Transfer | None = None,
) -> Fleet:
    """P prefill workers of one tensor-parallel degree and D decode workers of another, all else equal.

    Args:
        deployment: what every worker is (its `replicas` is not used); its router name is not used either.
        prefill_workers: how many compute prompts.
        decode_workers: how many generate.
        prefill_tensor_parallel: devices of a prefill worker; the deployment's where None.
        decode_tensor_parallel: devices of a decode worker; the deployment's where None.
        decode: what a decode worker is, where more than that differs.
        transfer: how caches move.
    """
    tp = deployment.tensor_parallel
    other = decode or deployment
    return Fleet(
        (
            Pool(replace(deployment, replicas=prefill_workers, tensor_parallel=prefill_tensor_parallel or tp), "prefill"),
            Pool(
                replace(other, replicas=decode_workers, tensor_parallel=decode_tensor_parallel or other.tensor_parallel),
                "decode",
            ),
        ),
        transfer=transfer or Transfer(),
    )
