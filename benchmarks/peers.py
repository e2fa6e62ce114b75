"""Other implementations, for `benchmarks/step.py`: a whole training step of each, with as many parameters as ours."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FOLDERS = [Path(sys.prefix) / name for name in ("peers", "transformers")]  # as the Makefile installs them
WITHIN = 0.02  # of our parameters

Build = Callable[[Mapping[str, int], int, float], nn.Module]
Loss = Callable[[nn.Module, Tensor], Tensor]


class Peer:
    """A model in a training loop as its users write it: AdamW, clipping, memory carried if it has any.

    Args:
        name: of `PEERS`.
        sizes: of the shape.
        vocab: tokens.
        parameters: how many it should have; the width of its MLP is chosen for that.
    """

    def __init__(self, name: str, sizes: Mapping[str, int], vocab: int, parameters: int) -> None:
        for folder in FOLDERS:
            if not (folder / ".installed").exists():
                raise SystemExit(f"{folder}: not installed; run `make peers`")
            sys.path.append(str(folder))
        build, self._loss_of = PEERS[name]
        with torch.device("meta"):
            narrow, wide = (_count(build(sizes, vocab, mlp)) for mlp in (1.0, 2.0))
        mlp = 1.0 + (parameters - narrow) / (wide - narrow)
        self.model = build(sizes, vocab, mlp)
        self.parameters = _count(self.model)
        if abs(self.parameters / parameters - 1) > WITHIN:
            raise SystemExit(f"{name}: {self.parameters} parameters, more than {WITHIN:.0%} off {parameters}")
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, betas=(0.9, 0.95), foreach=True)
        self._loss = self._loss_of()

    def step(self, tokens: Tensor) -> None:
        """Train on tokens (b, N + 1)."""
        self._loss(self.model, tokens).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _block_recurrent(sizes: Mapping[str, int], vocab: int, mlp: float) -> nn.Module:
    from block_recurrent_transformer_pytorch import BlockRecurrentTransformer

    model: nn.Module = BlockRecurrentTransformer(
        num_tokens=vocab,
        dim=sizes["width"],
        depth=sizes["layers"],
        dim_head=sizes["head_dim"],
        heads=sizes["heads"],
        ff_mult=mlp,
        max_seq_len=sizes["segment"],
        block_width=sizes["window"],
        num_state_vectors=sizes["window"],
        recurrent_layers=(sizes["layers"] - 2,),
    )
    return model


def _carried() -> Loss:
    """Memory and states go from one call to the next, as in the library's own training wrapper."""
    memories: list[Any] = []
    states: list[Any] = []

    def loss(model: nn.Module, tokens: Tensor) -> Tensor:
        found, memories[:], states[:] = model(tokens, xl_memories=memories, states=states, return_loss=True)
        return found

    return loss


def _gpt2(sizes: Mapping[str, int], vocab: int, mlp: float) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    inner = max(1, round(mlp * sizes["width"]))
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab, n_positions=sizes["segment"], n_embd=sizes["width"], n_layer=sizes["layers"],
            n_head=sizes["heads"], n_inner=inner, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip


def _next_token() -> Loss:
    def loss(model: nn.Module, tokens: Tensor) -> Tensor:
        logits = model(tokens[:, :-1], use_cache=False).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    return loss


PEERS: dict[str, tuple[Build, Callable[[], Loss]]] = {
    "block-recurrent-transformer-pytorch": (_block_recurrent, _carried),
    "GPT-2 of transformers, context N": (_gpt2, _next_token),
}
