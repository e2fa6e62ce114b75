"""A small training run, as a rank of any layout computes it, and as one plain loop does.

The corpus is random tokens in documents of different lengths, so that streams start new documents at different blocks
and steps.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brt_dist.config.schema import Config
from brt_dist.data.in_memory import InMemoryDataset
from brt_dist.data.reader import Segments
from brt_dist.data.stream_schedule import Cursor, StepReads, StreamSchedule
from brt_dist.optim.learning_rate import learning_rate
from brt_dist.parallel.stream_memory import StreamMemory

VOCAB = 101  # not divisible by 2 or 4: the table is padded
STEPS = 6
DECAYED = {"name": "adamw", "weight_decay": 0.1}


def corpus() -> InMemoryDataset:
    random = np.random.default_rng(5)
    lengths = (150, 31, 500, 16, 97, 64, 260, 1, 410, 130)
    return InMemoryDataset([random.integers(0, VOCAB, size=length) for length in lengths], VOCAB)


def config(
    parallel: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    optimizer: dict[str, Any] | None = None,
    precision: str = "fp32",
    seed: int = 3,
) -> Config:
    """The config of the case: 4 layers, 4 streams of 64 tokens in blocks of 16."""
    shape = {
        "layers": 4, "width": 48, "heads": 4, "head_dim": 16, "mlp_width": 96, "vocab_size": VOCAB, "window": 16,
        "states": 24, "dropout": 0.0,
    }  # fmt: skip
    return Config.model_validate(
        {
            "model": shape | (model or {}),
            "data": {"dataset": "unused", "segment": 64, "streams": 4},
            "parallel": {"micro_batch": 1} | (parallel or {}),
            "optimizer": {"learning_rate": 3e-3, "warmup_steps": 2, "clip_norm": 0.5} | (optimizer or DECAYED),
            "run": {"directory": "unused", "steps": STEPS, "precision": precision, "seed": seed},
        }
    )


@dataclass(frozen=True)
class Outcome:
    """What a run computed: per step loss and gradient norm, all weights, and at the end the memory; all logical."""

    losses: list[float]
    grad_norms: list[float]
    history: dict[str, Tensor]
    """weights before the first step and after each, (steps + 1, *shape)"""
    memory: dict[str, Tensor]

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: values[-1] for name, values in self.history.items()}

    @property
    def gradients(self) -> dict[str, Tensor]:
        """Gradients times the learning rate (steps, *shape), of an optimizer that is gradient descent."""
        return {name: values[:-1] - values[1:] for name, values in self.history.items()}


def segments_of(segments: Segments, rows: list[int]) -> Segments:
    """Some of the streams."""
    names = ("input", "target", "mask", "starts", "streams")
    return Segments(*(getattr(segments, name)[rows] for name in names))


def read_steps(given: Config, start: Cursor | None = None, steps: int = STEPS) -> list[tuple[StepReads, Segments]]:
    """The first steps of all streams."""
    from brt_dist.data.reader import SegmentReader

    source = corpus()
    schedule = StreamSchedule(
        source.lengths, streams=given.data.streams, segment=given.data.segment, window=given.model.window, seed=7
    )
    reader, cursor = SegmentReader(source, schedule), start or schedule.start()
    found = []
    for _ in range(steps):
        plan, cursor = schedule.step(cursor)
        found.append((plan, reader.read(plan, range(given.data.streams))))
    return found


def train_on_rank(rank: int, store: str, given: Config, steps: int = STEPS) -> dict[str, Any]:
    """The engine's run on one rank of `given`'s layout; logical parts with their place, to be joined by `join`."""
    import torch.distributed as dist

    from brt_dist.parallel.device import choose
    from brt_dist.parallel.layout import Layout, finalize, initialize

    layout = Layout.of(given, rank)
    device = choose("cpu", rank)
    initialize(layout, device, 120.0, dist.FileStore(store, layout.world_size))
    from brt_dist.parallel.engine import build_engine
    from brt_dist.parallel.step_input import step_input

    engine = build_engine(given, layout, device)
    try:
        mine = list(layout.local_streams)
        losses, norms, history = [], [], [engine.weights()]
        for number, (plan, segments) in enumerate(read_steps(given, steps=steps), 1):
            here = segments_of(segments, mine)
            step = step_input(number, plan, here, layout, device)
            result = engine.train_step(step, learning_rate(number, given.run.steps, given.optimizer))
            losses.append(result.loss)
            norms.append(result.grad_norm)
            history.append(engine.weights())
        return {
            "layout": layout,
            "splits": {
                f"layers.{layer}.{field.name}": field.split_dim(given.parallel.sequence_parallel)
                for layer in range(given.model.depth)
                for field in given.model.mixer_of(layer).memory(given.model)
            },
            "losses": losses,
            "grad_norms": norms,
            "history": {
                p.name: (torch.stack([weights[p.name].float() for weights in history]), p.partition_dim, p.shape)
                for p in engine.parameters
            },
            "memory": _local_memory(engine.memory, layout.filled_micro_batches),
        }
    finally:
        engine.close()
        finalize()


def _local_memory(memory: StreamMemory, micro_batches: int) -> dict[str, Tensor]:
    rows: dict[str, dict[int, Tensor]] = {}
    for layer, micro_batch, field, value in memory.tensors():
        rows.setdefault(f"layers.{layer}.{field}", {})[micro_batch] = value.float()
    return {name: torch.cat([parts[i] for i in range(micro_batches)]) for name, parts in rows.items()}


def join(parts: list[dict[str, Any]]) -> Outcome:
    """The logical outcome, from what all ranks returned; they must agree wherever they hold the same thing."""
    for part in parts[1:]:
        assert part["losses"] == parts[0]["losses"], "ranks report different losses"
        assert part["grad_norms"] == parts[0]["grad_norms"], "ranks report different gradient norms"
    history: dict[str, Tensor] = {}
    for row in parts:
        layout = row["layout"]
        if layout.tensor_rank:
            continue
        peers = [p for p in parts if (p["layout"].stage, p["layout"].data_rank) == (layout.stage, layout.data_rank)]
        for name, (local, dim, shape) in row["history"].items():
            whole = local
            if dim is not None:  # behind the steps
                whole = torch.cat([p["history"][name][0] for p in peers], dim + 1).narrow(dim + 1, 0, shape[dim])
            if name in history:  # replicas over data parallel ranks, and the tied embedding of first and last stage
                assert torch.equal(whole, history[name]), f"replicas of {name} differ"
            history[name] = whole
            if dim is None:
                for peer in peers:
                    torch.testing.assert_close(
                        peer["history"][name][0], local, rtol=0, atol=0, msg=f"tensor parallel copies of {name}"
                    )
    return Outcome(parts[0]["losses"], parts[0]["grad_norms"], history, _join_memory(parts))


def _join_memory(parts: list[dict[str, Any]]) -> dict[str, Tensor]:
    names = sorted({name for part in parts for name in part["memory"]})
    joined = {}
    for name in names:
        holders = [part for part in parts if name in part["memory"]]
        rows = []
        for data_rank in range(holders[0]["layout"].data):
            peers = [part["memory"][name] for part in holders if part["layout"].data_rank == data_rank]
            split = holders[0]["splits"][name]
            rows.append(peers[0] if split is None else torch.cat(peers, split + 1))
        joined[name] = torch.cat(rows)
    return joined


def train_plainly(given: Config, steps: int = STEPS) -> Outcome:
    """The same run without DeepSpeed, micro-batches or stream memory: a whole batch, autograd, torch's AdamW."""
    from brt_dist.model.dropout import Dropout
    from brt_dist.model.model import BlockRecurrentModel, loss_sum
    from brt_dist.model.parameters import logical_parameters
    from brt_dist.parallel.layout import single_process

    with single_process():
        model = BlockRecurrentModel(given.model, given.run.seed)
        settings = given.optimizer
        named = list(logical_parameters(model))
        decayed = [p.local for p in named if p.initializer.kind == "fan_in"]  # weights of linear maps
        others = [p.local for p in named if p.initializer.kind != "fan_in"]
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=settings.learning_rate, betas=settings.betas, eps=settings.eps,
        )  # fmt: skip
        memory = model.blank_memory(given.data.streams)
        losses, norms, history = [], [], [_weights(model)]
        for number, (plan, segments) in enumerate(read_steps(given, steps=steps), 1):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(number, given.run.steps, settings)
            draws = Dropout(given.model.dropout, given.run.seed, number - 1, range(given.data.streams))
            logits, memory = model(torch.from_numpy(segments.input), memory, torch.from_numpy(segments.starts), draws)
            nats = loss_sum(logits, torch.from_numpy(segments.target), torch.from_numpy(segments.mask))
            loss = nats / plan.loss_tokens
            optimizer.zero_grad()
            loss.backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm or float("inf"))))
            losses.append(loss.item())
            optimizer.step()
            history.append(_weights(model))
        remembered = {
            f"layers.{i}.{field}": value.clone() for i, layer in enumerate(memory) for field, value in layer.items()
        }
        whole = {name: torch.stack([weights[name] for weights in history]) for name in history[0]}
        return Outcome(losses, norms, whole, remembered)


def _weights(model: torch.nn.Module) -> dict[str, Tensor]:
    from brt_dist.model.parameters import logical_parameters

    return {p.name: p.whole([p.local.detach().clone()]) for p in logical_parameters(model)}
