"""The orders of actions that papers gave names to, one function each. All times are per stage and microbatch.

naive: one microbatch after another. gpipe (arXiv:1811.06965). 1f1b (PipeDream-flush, arXiv:2006.09503). interleaved (Megatron,
arXiv:2104.04473). looped_bfs (arXiv:2211.05953). pipedream (arXiv:1806.03377): 1f1b without a flush. zb_h1, zb_h2, zb_auto,
zb_v (arXiv:2401.10241). v_half, v_min (arXiv:2405.15362). dualpipe, dualpipe_v (arXiv:2412.19437). chimera (arXiv:2107.06925).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from itertools import product

from llmlab.reference.parallel._schedule import Action, Schedule, both_ways, folded, spell, straight


def naive(num_ranks: int, num_microbatches: int, virtual: int) -> Schedule:
    """One microbatch at a time: only one rank ever works."""
    orders = [spell([("F", rank), ("B", rank)] * num_microbatches) for rank in range(num_ranks)]
    return _plain("naive", num_microbatches, orders)


def gpipe(num_ranks: int, num_microbatches: int, virtual: int) -> Schedule:
    """All forwards, then all backwards."""
    orders = [spell([("F", rank)] * num_microbatches + [("B", rank)] * num_microbatches) for rank in range(num_ranks)]
    return _plain("gpipe", num_microbatches, orders)


def one_f_one_b(num_ranks: int, num_microbatches: int, virtual: int) -> Schedule:
    """Rank r runs p - r - 1 forwards ahead, then one forward and one backward in turn."""
    orders = []
    for rank in range(num_ranks):
        ahead = min(num_microbatches, num_ranks - rank - 1)
        steady = [("F", rank), ("B", rank)] * (num_microbatches - ahead)
        orders.append(spell([("F", rank)] * ahead + steady + [("B", rank)] * ahead))
    return _plain("1f1b", num_microbatches, orders)


def pipedream(num_ranks: int, num_microbatches: int, virtual: int) -> Schedule:
    """The order of 1f1b, every microbatch a minibatch with its own update, old weights stashed."""
    like = one_f_one_b(num_ranks, num_microbatches, virtual)
    return Schedule("pipedream", num_microbatches, num_ranks, like.rank_of, like.actions, flush=False)


def interleaved(num_ranks: int, num_microbatches: int, virtual: int) -> Schedule:
    """1f1b over `virtual` stages per rank, p microbatches on one of them before the next.

    Raises:
        ValueError: fewer than 2 virtual stages, or microbatches that do not divide into rounds of (at least) p.
    """
    if virtual < 2:
        raise ValueError(f"interleaved: virtual={virtual} < 2 (that is 1f1b)")
    rounds = max(1, num_microbatches // num_ranks)
    if num_microbatches % rounds:
        raise ValueError(f"interleaved: num_microbatches={num_microbatches} do not divide into {rounds} equal rounds")
    each = num_microbatches // rounds
    total = num_microbatches * virtual
    orders = []
    for rank in range(num_ranks):
        down = [("F", rank + num_ranks * ((step // each) % virtual)) for step in range(total)]
        back = [("B", rank + num_ranks * (virtual - 1 - (step // each) % virtual)) for step in range(total)]
        ahead = min(total, (virtual - 1) * each + 2 * (num_ranks - 1 - rank))
        kinds = down[:ahead]
        for forward, backward in zip(down[ahead:], back):
            kinds += [forward, backward]
        orders.append(spell(kinds + back[total - ahead :]))
    rank_of = straight(num_ranks, virtual)
    return Schedule("interleaved", num_microbatches, len(rank_of), rank_of, tuple(map(tuple, orders)))


def looped_bfs(num_ranks: int, num_microbatches: int, virtual: int) -> Schedule:
    """Every microbatch through a rank's first stage, then through its second, ...; back the same way, in reverse."""
    orders = []
    for rank in range(num_ranks):
        stages = range(rank, num_ranks * virtual, num_ranks)
        down = [Action("F", stage, microbatch) for stage in stages for microbatch in range(num_microbatches)]
        orders.append(down + [Action("B", stage, microbatch) for _, stage, microbatch in reversed(down)])
    rank_of = straight(num_ranks, virtual)
    return Schedule("looped_bfs", num_microbatches, len(rank_of), rank_of, tuple(map(tuple, orders)))


def zb_h1(num_ranks: int, num_microbatches: int, virtual: int) -> Schedule:
    """1f1b with B cut in two; rank r lets its W lag r microbatches behind, so that no rank holds more than p activations."""
    return _handcrafted("zb_h1", num_ranks, num_microbatches, 1)


def zb_h2(num_ranks: int, num_microbatches: int, virtual: int) -> Schedule:
    """zb_h1 with twice as many forwards ahead and W twice as late: no bubble between, for nearly twice the activations."""
    return _handcrafted("zb_h2", num_ranks, num_microbatches, 2)


def _handcrafted(name: str, num_ranks: int, num_microbatches: int, times: int) -> Schedule:
    orders = []
    for rank in range(num_ranks):
        ahead, lag = min(num_microbatches, times * (num_ranks - rank - 1)), min(num_microbatches, times * rank)
        kinds = [("F", rank)] * ahead
        for microbatch in range(num_microbatches):
            kinds += [("F", rank)] * (microbatch + ahead < num_microbatches) + [("I", rank)]
            kinds += [("W", rank)] * (microbatch >= lag)
        orders.append(spell(kinds + [("W", rank)] * lag))
    return _plain(name, num_microbatches, orders)


def zb_v(num_ranks: int, num_microbatches: int, virtual: int) -> Schedule:
    """Zero bubble on a V of two stages per rank, with the activations of 1f1b when F, I and W take the same time."""
    rank_of, long = folded(num_ranks), max(2 * num_ranks - 1, num_microbatches)
    orders = []
    for rank in range(num_ranks):
        first, second = rank, 2 * num_ranks - 1 - rank
        kinds = [("F", first)] * (2 * (num_ranks - rank) - 1)
        kinds += [("F", second), ("F", first)] * rank
        kinds += [("F", second), ("I", second), ("W", second)] * (num_ranks - rank)
        for step in range(long - num_ranks):
            kinds += [("F", first)] * (step <= long - 2 * num_ranks + rank)
            kinds += [("I", first), ("W", first), ("F", second), ("I", second), ("W", second)]
        kinds += [("I", first), ("I", second)] * rank + [("I", first), ("W", first)] * (num_ranks - rank)
        for stage in (second, first):
            kinds += [("W", stage)] * (kinds.count(("I", stage)) - kinds.count(("W", stage)))
        orders.append([action for action in spell(kinds) if action.microbatch < num_microbatches])
    return Schedule("zb_v", num_microbatches, 2 * num_ranks, rank_of, tuple(map(tuple, orders)))


def _building_block(name: str, num_ranks: int, num_microbatches: int, deltas: tuple[int, int, int, int]) -> Schedule:
    """Repeat one pattern every 6 slots (F, I, W of two stages) and let it slide together.

    Pass k of a microbatch moves from rank to rank in `deltas[k]` slots: F down, F up, I down, I up. The start of each pass is
    the earliest at which no two passes ever fall on the same slot of a rank; the W take the slots that are left.
    """
    last = num_ranks - 1
    down, up, back_down, back_up = deltas

    def starts() -> tuple[int, int, int]:
        for turn, top, end in product(range(1, 7), repeat=3):
            second = last * (down + up) + turn
            third = second + top
            fourth = third + last * (back_down + back_up) + end
            passes = [
                {down * rank % 6, (second - up * rank) % 6, (third + back_down * rank) % 6, (fourth - back_up * rank) % 6}
                for rank in range(num_ranks)
            ]
            if all(len(slots) == 4 for slots in passes):
                return second, third, fourth
        raise ValueError(f"{name}: no room for the passes of {num_ranks} ranks")

    second, third, fourth = starts()
    orders = []
    for rank in range(num_ranks):
        stages = rank, 2 * num_ranks - 1 - rank
        slots = [
            (down * rank, "F", stages[0]),
            (second - up * rank, "F", stages[1]),
            (third + back_down * rank, "I", stages[1]),
            (fourth - back_up * rank, "I", stages[0]),
        ]
        taken = {slot % 6 for slot, _, _ in slots}
        for slot, _, stage in slots[2:]:
            free = next(later for later in range(slot + 1, slot + 7) if later % 6 not in taken)
            taken.add(free % 6)
            slots.append((free, "W", stage))
        timed = [
            (slot + 6 * microbatch, Action(kind, stage, microbatch))
            for slot, kind, stage in slots
            for microbatch in range(num_microbatches)
        ]
        orders.append([action for _, action in sorted(timed)])
    return Schedule(name, num_microbatches, 2 * num_ranks, folded(num_ranks), tuple(map(tuple, orders)))


def v_min(num_ranks: int, num_microbatches: int, virtual: int) -> Schedule:
    """A V whose passes go from rank to rank in one slot: a third of the activations of 1f1b."""
    return _building_block("v_min", num_ranks, num_microbatches, (1, 1, 1, 1))


def v_half(num_ranks: int, num_microbatches: int, virtual: int) -> Schedule:
    """A V with half of the activations of 1f1b."""
    return _building_block("v_half", num_ranks, num_microbatches, (2, 1, 2, 1))


def _dual(place: int, half: int, count: int, near: int, far: int) -> list[Action]:
    """What a rank of DualPipe does, `place` ranks from the outer end of `half`, with `count` microbatches each way.

    `near` is the stage whose microbatches enter at this end. Forwards of one way run beside backwards of the other.
    """
    kinds: list[tuple[str, int]] = []
    waiting: deque[Action] = deque()
    counts: dict[tuple[str, int], int] = {}
    actions: list[Action] = []

    def do(kind: str, stage: int) -> None:
        number = counts.get(("B" if kind in "BI" else kind, stage), 0)
        counts["B" if kind in "BI" else kind, stage] = number + 1
        actions.append(Action(kind, stage, number))
        if kind == "I":
            waiting.append(Action("W", stage, number))

    def weights() -> None:
        if waiting:
            actions.append(waiting.popleft())

    inner = half - place - 1
    kinds = [("F", near)] * (2 * inner) + [("F", near), ("F", far)] * (place + 1)
    for kind, stage in kinds:
        do(kind, stage)
    for _ in range(inner):
        do("I", far)
        weights()
        do("F", far)
    for kind, stage in [("F", near), ("B", far), ("F", far), ("B", near)] * (count - 2 * half + place + 1):
        do(kind, stage)
    for kind, stage in [("B", far), ("F", far), ("B", near)] * inner:
        do(kind, stage)
    ends = [far, near] * (place + 1)
    for number, stage in enumerate(ends):  # from the middle on, only the gradient of the input: W fill what follows
        do("I" if number >= place + 1 else "B", stage)
    for _ in range(inner):
        weights()
        do("I", near)
    while waiting:
        weights()
    return actions


def dualpipe(num_ranks: int, num_microbatches: int, virtual: int) -> Schedule:
    """Two pipelines in opposite directions over two copies of the model (DeepSeek-V3).

    Raises:
        ValueError: an odd number of ranks or microbatches, or fewer than 2 p microbatches.
    """
    if num_ranks % 2 or num_microbatches % 2 or num_microbatches < 2 * num_ranks:
        raise ValueError(f"dualpipe: num_ranks={num_ranks} and num_microbatches={num_microbatches} must be even, with m >= 2 p")
    half, count = num_ranks // 2, num_microbatches // 2
    orders = []
    for rank in range(num_ranks):
        down, up = rank, 2 * num_ranks - 1 - rank  # chains 0 and 1
        if rank < half:
            order = _dual(rank, half, count, down, up)
        else:
            order = _dual(num_ranks - 1 - rank, half, count, up, down)
        orders.append([action._replace(microbatch=action.microbatch + count * (action.stage >= num_ranks)) for action in order])
    return Schedule("dualpipe", num_microbatches, num_ranks, both_ways(num_ranks), tuple(map(tuple, orders)))


def dualpipe_v(num_ranks: int, num_microbatches: int, virtual: int) -> Schedule:
    """DualPipe cut in half: one copy of the model, folded to a V.

    Raises:
        ValueError: fewer than 2 p microbatches.
    """
    if num_microbatches < 2 * num_ranks:
        raise ValueError(f"dualpipe_v: num_microbatches={num_microbatches} < 2 * num_ranks={2 * num_ranks}")
    orders = [_dual(rank, num_ranks, num_microbatches, rank, 2 * num_ranks - 1 - rank) for rank in range(num_ranks)]
    return Schedule("dualpipe_v", num_microbatches, 2 * num_ranks, folded(num_ranks), tuple(map(tuple, orders)))


def chimera(num_ranks: int, num_microbatches: int, virtual: int) -> Schedule:
    """Half of every p microbatches down, half up over a second copy; units of p follow each other without a gap.

    Raises:
        ValueError: an odd number of ranks, or microbatches that p does not divide.
    """
    if num_ranks % 2 or num_microbatches % num_ranks:
        raise ValueError(f"chimera: num_ranks={num_ranks} must be even and divide num_microbatches={num_microbatches}")
    half, units = num_ranks // 2, num_microbatches // num_ranks
    orders = []
    for rank in range(num_ranks):
        timed = []
        for way, unit, number in product(range(2), range(units), range(half)):
            part = rank if way == 0 else num_ranks - 1 - rank
            stage, microbatch = way * num_ranks + part, way * half * units + unit * half + number
            start = 2 * num_ranks * unit + 2 * number
            timed.append((start + part, Action("F", stage, microbatch)))
            timed.append((start + 2 * num_ranks - 1 - part, Action("B", stage, microbatch)))
        orders.append([action for _, action in sorted(timed)])
    return Schedule("chimera", num_microbatches, num_ranks, both_ways(num_ranks), tuple(map(tuple, orders)))


def zb_auto(
    num_ranks: int,
    num_microbatches: int,
    *,
    forward: int = 1,
    backward_input: int = 1,
    backward_weight: int = 1,
    hand_over: int = 0,
    max_activations: int | None = None,
    freed_by_input: float = 0.0,
) -> Schedule:
    """Choose an order for measured times and a limit on activations: the heuristic of zero bubble (ZB-1p, ZB-2p).

    Ranks are looked at in the order of time. A rank does I as soon as it can; else F while activations are below the limit;
    else W if it fits before the next arrival or nothing else can come. Three readings of "fits" and three limits on warm-up
    are tried and the shortest span kept, as the paper does with its own two switches.

    I gives back the part `freed_by_input` of an activation, W the rest. The paper counts 34 + 5 a s / h parts for both
    (a heads, s tokens, h width), of which W still needs 32.

    Raises:
        ValueError: a limit under the number of ranks, or a part that is none.
    """
    if not 0 <= freed_by_input <= 1:
        raise ValueError(f"zb_auto: freed_by_input={freed_by_input} is not from 0 to 1")
    limit = num_ranks if max_activations is None else max_activations
    if limit < num_ranks:
        raise ValueError(f"zb_auto: max_activations={limit} < num_ranks={num_ranks}")
    times = {"F": forward, "I": backward_input, "W": backward_weight}
    found = [
        _greedy(num_ranks, num_microbatches, times, hand_over, limit, round(1000 * freed_by_input), greedy, warm, turns)
        for greedy, warm, turns in product((0, 1, 2), ("all", "just", "twice"), (False, True))
    ]
    found.append(_timed_span(zb_h1(num_ranks, num_microbatches, 1), times, hand_over))
    if limit >= 2 * num_ranks - 1:
        found.append(_timed_span(zb_h2(num_ranks, num_microbatches, 1), times, hand_over))
    _, orders = min(found, key=lambda pair: pair[0])
    return _plain("zb_auto", num_microbatches, orders)


def _timed_span(schedule: Schedule, times: Mapping[str, int], hand_over: int) -> tuple[int, list[list[Action]]]:
    ends: dict[Action, int] = {}
    free, first = [0] * schedule.num_ranks, [-1] * schedule.num_ranks
    for rank, action in schedule.in_order():
        arrived = [ends[need] + hand_over * (schedule.rank_of[need.stage] != rank) for need in schedule.needs(action)]
        start = max([free[rank], *arrived])
        first[rank] = start if first[rank] < 0 else first[rank]
        free[rank] = ends[action] = start + times[action.kind]
    return max(end - begin for end, begin in zip(free, first)), [list(actions) for actions in schedule.actions]


def _greedy(
    num_ranks: int,
    num_microbatches: int,
    times: Mapping[str, int],
    hand_over: int,
    limit: int,
    freed_permille: int,
    greedy: int,
    warm: str,
    turns: bool,
) -> tuple[int, list[list[Action]]]:
    never = 1 << 62
    arrived_f = [[0] * num_microbatches if rank == 0 else [] for rank in range(num_ranks)]
    arrived_i: list[list[int]] = [[] for _ in range(num_ranks)]
    done = [{"F": 0, "I": 0, "W": 0} for _ in range(num_ranks)]
    free, first, last = [0] * num_ranks, [-1] * num_ranks, [""] * num_ranks
    orders: list[list[Action]] = [[] for _ in range(num_ranks)]
    ahead = [{"all": limit, "just": num_ranks - rank, "twice": 2 * (num_ranks - rank) - 1}[warm] for rank in range(num_ranks)]

    def best(rank: int) -> tuple[int, str]:
        """When this rank could start what, as far as is known now."""
        now, count = free[rank], done[rank]
        backward = max(now, arrived_i[rank][count["I"]]) if count["I"] < len(arrived_i[rank]) else never
        held = 1000 * count["F"] - freed_permille * count["I"] - (1000 - freed_permille) * count["W"]
        may = held + 1000 <= 1000 * limit and (count["I"] > 0 or count["F"] < ahead[rank])
        forward = max(now, arrived_f[rank][count["F"]]) if may and count["F"] < len(arrived_f[rank]) else never
        pending = count["W"] < count["I"]
        here = count["F"] < len(arrived_f[rank]) and arrived_f[rank][count["F"]] <= now
        if turns and last[rank] == "I" and here and (may or pending):  # F and I in turn, a W to make space for F
            return now, "F" if may else "W"
        soon, kind = min((backward, "I"), (forward, "F"), key=lambda pair: pair[0])
        if pending and (soon == never or (soon - now >= times["W"] * (2 - greedy) / 2 and soon > now)):
            return now, "W"
        return soon, kind

    for _ in range(3 * num_ranks * num_microbatches):
        start, rank, kind = min((start, rank, kind) for rank in range(num_ranks) for start, kind in [best(rank)])
        if start == never:
            return never, orders
        number = done[rank][kind]
        done[rank][kind] += 1
        end = free[rank] = start + times[kind]
        first[rank] = start if first[rank] < 0 else first[rank]
        orders[rank].append(Action(kind, rank, number))
        last[rank] = last[rank] if kind == "W" else kind
        if kind == "F":
            (arrived_f[rank + 1] if rank + 1 < num_ranks else arrived_i[rank]).append(
                end + (hand_over if rank + 1 < num_ranks else 0)
            )
        elif kind == "I" and rank:
            arrived_i[rank - 1].append(end + hand_over)
    return max(end - begin for end, begin in zip(free, first)), orders


def _plain(name: str, num_microbatches: int, orders: list[list[Action]]) -> Schedule:
    return Schedule(name, num_microbatches, len(orders), straight(len(orders)), tuple(map(tuple, orders)))


SCHEDULES: Mapping[str, Callable[[int, int, int], Schedule]] = {
    "naive": naive,
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved": interleaved,
    "looped_bfs": looped_bfs,
    "pipedream": pipedream,
    "zb_h1": zb_h1,
    "zb_h2": zb_h2,
    "zb_1p": lambda p, m, v: _renamed("zb_1p", zb_auto(p, m, max_activations=p)),
    "zb_2p": lambda p, m, v: _renamed("zb_2p", zb_auto(p, m, max_activations=2 * p)),
    "zb_v": zb_v,
    "v_half": v_half,
    "v_min": v_min,
    "dualpipe": dualpipe,
    "dualpipe_v": dualpipe_v,
    "chimera": chimera,
}
LOOPED = ("interleaved", "looped_bfs")
"""Schedules that take a number of virtual stages per rank; the V take two, the others one."""


def _renamed(name: str, schedule: Schedule) -> Schedule:
    return Schedule(name, schedule.num_microbatches, schedule.depth, schedule.rank_of, schedule.actions)


def make_schedule(name: str, num_ranks: int, num_microbatches: int, virtual: int = 1) -> Schedule:
    """Return a validated schedule.

    Raises:
        ValueError: unknown name, sizes under 1, virtual stages where there are none, or sizes that the schedule does not take.

    >>> print(make_schedule("1f1b", 2, 2).text())
    0F0 0F1 0B0 0B1
    1F0 1B0 1F1 1B1
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule={name!r} is none of {', '.join(SCHEDULES)}")
    for field, value in (("num_ranks", num_ranks), ("num_microbatches", num_microbatches), ("virtual", virtual)):
        if value < 1:
            raise ValueError(f"{field}={value} < 1")
    if virtual > 1 and name not in LOOPED:
        raise ValueError(f"virtual={virtual}: only {' and '.join(LOOPED)} take virtual stages, not {name}")
    schedule = SCHEDULES[name](num_ranks, num_microbatches, virtual)
    schedule.validate()
    return schedule


def bubble_time(
    name: str,
    num_ranks: int,
    num_microbatches: int,
    virtual: int,
    forward: float,
    backward_input: float,
    backward_weight: float,
) -> float | None:
    """Idle time of a rank as the paper of the schedule states it, hand-over free; None where it states none.

    Times are those of 1 / num_ranks of the model. zb_h2 counts from a rank's first action to its last; so does zb_v, whose zero
    needs F = I = W. Chimera's needs F = B. DualPipe's takes a forward beside a backward for one piece
    that lasts as long as both, and needs F <= I and W <= I.
    """
    p, F, I, W = num_ranks, forward, backward_input, backward_weight
    both = F + I + W
    forms = {
        "naive": (p - 1) * num_microbatches * both,
        "gpipe": (p - 1) * both,
        "1f1b": (p - 1) * both,
        "pipedream": (p - 1) * both,
        "interleaved": (p - 1) * both / virtual,
        "looped_bfs": (p - 1) * both / virtual,
        "zb_h1": (p - 1) * (F + I - W),
        "zb_h2": (p - 1) * (F + I - 2 * W),
        "zb_v": 0.0 if F == I == W else None,
        "dualpipe": (p / 2 - 1) * (both + I + W - 3 * W) if max(F, W) <= I else None,
        "dualpipe_v": (p - 1) * (both + I + W - 3 * W) / 2 if max(F, W) <= I else None,
        "chimera": (p / 2 - 1) * both if I + W == F else None,
    }
    return forms.get(name)


def peak_of(name: str, num_ranks: int, num_microbatches: int, virtual: int, rank: int) -> float | None:
    """Most activations of a rank in a closed form, in units of 1 / num_ranks of the model; None where there is none."""
    p, m = num_ranks, num_microbatches
    ahead = {
        "naive": 1,
        "gpipe": m,
        "1f1b": min(m, p - rank),
        "pipedream": min(m, p - rank),
        "looped_bfs": m,
        "zb_h1": min(m, p),
        "zb_h2": min(m, 2 * p - 1),
        "interleaved": min(m * virtual, (virtual - 1) * (m // max(1, m // p)) + 2 * (p - 1 - rank) + 1) / virtual,
    }
    return ahead.get(name)
