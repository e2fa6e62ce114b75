"""Do the collectives of all ranks of a world match?  If they do not, a real run hangs."""

from collections import deque
from collections.abc import Mapping, Sequence

from tests.scale.recorder import Collective

_PAIRS = {"send": "recv", "recv": "send"}


def first_mismatch(traces: Mapping[int, Sequence[Collective]]) -> str | None:
    """Run the collectives of all ranks, in the order in which each rank makes them, none returning before it is done.

    Args:
        traces: of every rank of the world.

    Returns:
        Why it cannot be run to the end, or None.
    """
    position = dict.fromkeys(traces, 0)
    # where ranks wait: for the rest of a group, or (sender, receiver) for the other end
    waiting: dict[tuple[str, tuple[int, ...]], set[int]] = {}
    ready = deque(traces)
    while ready:
        rank = ready.popleft()
        if position[rank] == len(traces[rank]):
            continue
        call = traces[rank][position[rank]]
        key, needed = _meeting(rank, call)
        arrived = waiting.setdefault(key, set())
        arrived.add(rank)
        if arrived != needed:
            continue
        calls = {one: traces[one][position[one]] for one in arrived}
        if len({(_op(one), one.dtype, one.shape) for one in calls.values()}) > 1:
            different = "; ".join(f"rank {one}: {_text(made)}" for one, made in sorted(calls.items()))
            return f"call {position[rank]} of rank {rank} differs: {different}"
        del waiting[key]
        for one in sorted(arrived):
            position[one] += 1
            ready.append(one)
    stuck = [rank for rank in traces if position[rank] < len(traces[rank])]
    if not stuck:
        return None
    shown = "; ".join(
        f"rank {rank} at call {position[rank]}: {_text(traces[rank][position[rank]])}" for rank in stuck[:8]
    )
    return f"{len(stuck)} ranks wait for ever: {shown}"


def _meeting(rank: int, call: Collective) -> tuple[tuple[str, tuple[int, ...]], set[int]]:
    """Where the ranks of a call meet, and which."""
    if call.op in _PAIRS:
        assert call.peer is not None
        ends = (rank, call.peer) if call.op == "send" else (call.peer, rank)
        return ("pair", ends), set(ends)
    return ("group", call.members), set(call.members)


def _op(call: Collective) -> str:
    return "pair" if call.op in _PAIRS else call.op


def _text(call: Collective) -> str:
    other = f"rank {call.peer}" if call.op in _PAIRS else f"{call.ranks} ranks ({call.group})"
    return f"{call.op} {call.dtype} {list(call.shape)} {'with' if call.op in _PAIRS else 'over'} {other}, {call.phase}"
