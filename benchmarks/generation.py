"""`python -m benchmarks.generation`: time and memory of a generated token, as the text becomes longer.

Compares a recurrent model with GPT-2 of the same size (parameters) with its key/value cache, from `transformers`.  Both
generate some tokens at each length, in turns, so that a temporarily busy machine slows both alike: look at the ratios.
The recurrent model reads every token up to the longest length.  GPT-2's cache is filled with numbers instead, which
cost as much to attend to; reading that far with it would take hours.  The cache is the one that `generate` uses, which
is copied for each token.

--lengths N ...     tokens that were read before (1000 10000 100000)      --tokens N    generated at each length (64)
--width N           of both (128)      --layers N    of both (4)      --window N    of the recurrent model (64)
--transformers DIR  where `transformers` is installed (.venv/transformers, from `make test`)
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

VOCAB = 256


class Recurrent:
    """A recurrent model, one text."""

    name = "recurrent"

    def __init__(self, width: int, layers: int, window: int) -> None:
        from brt_dist.config.schema import ModelConfig
        from brt_dist.generation.decoder import Decoder
        from brt_dist.model.model import BlockRecurrentModel

        sizes = {"layers": layers, "width": width, "heads": 4, "head_dim": width // 4, "window": window}
        mixers = {"window": {}, "recurrent": {"layers": [-2], "states": window}}
        config = ModelConfig.model_validate(
            {**sizes, "vocab_size": VOCAB, "mixers": mixers, "ffns": {"relu": {"width": 4 * width}}}
        )
        self.network = BlockRecurrentModel(config, seed=0).eval()
        self._decoder, self._next = Decoder(self.network, 1), 0

    def read(self, length: int) -> None:
        """Read on to this many tokens."""
        count = length - self._decoder.read[0]
        generator = torch.Generator().manual_seed(length)
        self._decoder.feed({0: torch.randint(VOCAB, (count,), generator=generator).tolist()})

    def generate(self) -> None:
        """One more token."""
        self._next = int(self._decoder.feed({0: [self._next]}).argmax())

    def carried_bytes(self) -> int:
        return self._decoder.carried_bytes()


class GPT2:
    """GPT-2 with about as many parameters as `like`."""

    name = "GPT-2"

    def __init__(self, width: int, layers: int, like: torch.nn.Module, longest: int) -> None:
        from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

        def made(inner: int) -> Any:
            config = GPT2Config(
                vocab_size=VOCAB, n_positions=longest, n_embd=width, n_layer=layers, n_head=4, n_inner=inner
            )
            return GPT2LMHeadModel(config).eval()

        wanted = sum(p.numel() for p in like.parameters())
        with torch.device("meta"):
            narrow, wide = (_body(made(inner)) for inner in (1, 2))
        self.network = made(max(1 + round((wanted - narrow) / (wide - narrow)), 1))
        self._cache_type, self._next = DynamicCache, 0
        self._shape = (1, 4, width // 4, layers)
        self._cache: Any = None

    def read(self, length: int) -> None:
        """Fill the cache as if this many tokens had been read."""
        streams, heads, size, layers = self._shape
        self._cache = self._cache_type()
        for layer in range(layers):
            self._cache.update(
                torch.randn(streams, heads, length, size), torch.randn(streams, heads, length, size), layer
            )

    def generate(self) -> None:
        """One more token."""
        found = self.network(torch.tensor([[self._next]]), cache=self._cache, use_cache=True)
        self._next = int(found.logits[0, -1].argmax())

    def carried_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for layer in self._cache.layers for t in (layer.keys, layer.values))


def _body(model: torch.nn.Module) -> int:
    """Parameters without the table of positions, which grows with the longest text."""
    return sum(p.numel() for name, p in model.named_parameters() if not name.endswith("wpe.weight"))


def _seconds(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument(
        "--tokens", type=int, default=64, help="tokens to generate at each length; a window or more shows everything"
    )
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--transformers", type=Path, default=Path(sys.prefix) / "transformers")
    options = parser.parse_args()
    if not (options.transformers / "transformers").is_dir():
        parser.error(f"{options.transformers} has no transformers; `make test` installs it, or give --transformers")
    from brt_dist.parallel.layout import single_process

    torch.set_num_threads(1)
    with single_process():
        recurrent = Recurrent(options.width, options.layers, options.window)
        sys.path.append(str(options.transformers))  # after our libraries, which would import it too
        longest = max(options.lengths) + options.tokens + 1
        gpt2 = GPT2(options.width, options.layers, recurrent.network, longest)
        print(f"{_body(recurrent.network):,} and {_body(gpt2.network):,} parameters (without GPT-2's positions)")
        print("| tokens before | recurrent, ms/token | GPT-2, ms/token | ratio | recurrent, MB | GPT-2, MB |")
        print("|---|---|---|---|---|---|")
        for length in sorted(options.lengths):
            models: tuple[Recurrent, GPT2] = (recurrent, gpt2)
            for model in models:
                model.read(length)
            seconds: tuple[list[float], list[float]] = ([], [])
            for _ in range(options.tokens):
                for model, found in zip(models, seconds, strict=True):
                    found.append(_seconds(model.generate))
            ours, theirs = (1000 * statistics.median(found) for found in seconds)
            held = [f"{model.carried_bytes() / 1e6:.2f}" for model in models]
            print(
                f"| {length:,} | {ours:.2f} | {theirs:.2f} | {ours / theirs:.2f} | {held[0]} | {held[1]} |", flush=True
            )


if __name__ == "__main__":
    main()
