"""What a step costs, as counts: memory kept for backward, FLOPs executed, operations called.  Nothing is computed.

Sizes are those of a 7B model, on one rank: N 4096, W 512, D 4096, 32 heads, bf16.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from brt_dist.config.schema import ModelConfig
from brt_dist.model.layers import Layer
from brt_dist.model.memory import carried
from brt_dist.model.model import TokenEmbedding
from brt_dist.model.recompute import Recompute, calls
from brt_dist.parallel.layout import single_process
from brt_dist.planning.flops import TRAINING
from tests.scale.activations import Operations, left_by

GIB = 2**30
SEGMENT, WINDOW, RECURRENT = 4096, 0, 1  # tokens; layers


@pytest.fixture(scope="module", autouse=True)
def world_of_one() -> Iterator[None]:
    with single_process():
        yield


def network(**changes: object) -> ModelConfig:
    sizes: dict[str, object] = {
        "layers": 2, "width": 4096, "heads": 32, "head_dim": 128, "mlp_width": 16384, "vocab_size": 131072,
        "window": 512, "states": 512, "recurrent_layers": (RECURRENT,), "dropout": 0.0,
    }  # fmt: skip
    return ModelConfig.model_validate({**sizes, **changes})


def forward(config: ModelConfig, index: int, recompute: Recompute = "none") -> tuple[int, list[Tensor]]:
    """One stream through a layer: bytes that it keeps for backward, its input among them, and its results."""
    how = calls(recompute)
    with torch.device("meta"):
        layer = Layer(config, index).bfloat16()
        x = torch.empty(SEGMENT, 1, config.width, dtype=torch.bfloat16, requires_grad=True)
        starts = torch.zeros(1, SEGMENT // config.window, dtype=torch.bool)
        memory = layer.blank_memory(1)

        def run() -> list[Tensor]:
            y, after = how.layer(layer, x, memory, starts, None, None, how.mixer)
            # as in training: a view of what backward keeps would be taken for a result
            return [y, *carried(after).values()]

        left, results = left_by(run)
    return left + x.nbytes, results


@pytest.mark.parametrize(
    ("index", "recompute", "most"),
    [
        (WINDOW, "none", 0.33),
        (WINDOW, "attention", 0.19),
        (WINDOW, "layer", 0.04),
        (RECURRENT, "none", 0.9),
        (RECURRENT, "attention", 0.19),
        (RECURRENT, "layer", 0.04),
    ],
)
def test_a_layer_keeps_no_probabilities(index: int, recompute: Recompute, most: float) -> None:
    left, _ = forward(network(), index, recompute)
    assert left <= most * GIB, left / GIB


def test_the_head_keeps_no_logits() -> None:
    config = network()
    with torch.device("meta"):
        embedding = TokenEmbedding(config).bfloat16()
        x = torch.empty(SEGMENT, 1, config.width, dtype=torch.bfloat16, requires_grad=True)
        target = torch.zeros(SEGMENT, 1, dtype=torch.long)
        left, (losses,) = left_by(lambda: [embedding.losses(x, target)])
        assert left + x.nbytes <= 0.1 * GIB
        with Operations() as operations:
            losses.sum().backward()
        held = (x.grad, embedding.weight.grad)
        assert operations.bytes_left(t for t in held if t is not None) == 0


@pytest.mark.parametrize("width", [1024, 4096])
def test_a_window_layer_does_little_work_that_is_masked_or_done_twice(width: int) -> None:
    config = network(width=width, heads=width // 128, mlp_width=4 * width)
    with FlopCounterMode(display=False) as counter:
        _, results = forward(config, WINDOW)
        results[0].sum().backward()
    useful = config.mixer_of(WINDOW).flops(config, executed=False) + config.ffn_of(WINDOW).flops(config, executed=False)
    share = counter.get_total_flops() / (TRAINING * useful * SEGMENT)
    assert 1 < share <= 1.1


@pytest.mark.parametrize(
    ("index", "most"), [(WINDOW, (400, 910)), (RECURRENT, (1130, 2060))], ids=["window", "recurrent"]
)
def test_few_operations_are_called(index: int, most: tuple[int, int]) -> None:
    """Each costs a CPU some microseconds, and a GPU a launch."""
    with Operations() as ahead:
        _, results = forward(network(), index)
    with Operations() as back:
        results[0].sum().backward()
    assert ahead.count <= most[0] and back.count <= most[1], (ahead.count, back.count)
