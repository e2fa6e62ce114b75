"""`python -m benchmarks.serving`: `brt serve` under load on loopback: throughput and latency with 1, 8 and 64 clients.

Each client sends one streamed request after the other, each with its own text, until its share is done.  The server is
the real one, in a separate process.  Latency is from sending a request to its first text; the pace is the time from
the first text to the last, by token.

--source SOURCE     the model; without it a small one that was not trained (figures depend on its size alone)
--clients N ...     numbers of clients (1 8 64)     --requests N    of each number of clients, in all (64)
--prompt N          bytes of a prompt (200)         --tokens N      generated for a request (32)
--streams N         texts that the server generates together (8)
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

_START_SECONDS = 120
_REQUEST_SECONDS = 600


@dataclass(frozen=True)
class Answered:
    """A request: seconds to its first text and to its end, and its tokens."""

    first: float
    whole: float
    tokens: int


@contextmanager
def server(source: str, *options: str) -> Iterator[tuple[int, "subprocess.Popen[str]"]]:
    """`brt serve SOURCE` on a free port of this machine, until the block ends; the port and the process."""
    command = [sys.executable, "-P", "-m", "launch.cli", "serve", source, "--port", "0", "--json", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    guard = threading.Timer(_START_SECONDS, process.kill)
    guard.start()
    try:
        line = process.stdout.readline() if process.stdout else ""
        guard.cancel()
        port = json.loads(line).get("port") if line else None
        if port is None:
            raise RuntimeError(f"brt serve did not start: {line}{process.communicate()[1]}")
        yield port, process
    finally:
        guard.cancel()
        process.terminate()
        process.communicate()


def small_model(folder: Path, width: int = 64, window: int = 64) -> str:
    """An export of a recurrent model of two layers with the byte tokenizer, as it is before training."""
    from brt_dist.config.schema import ModelConfig
    from brt_dist.data.tokenizers import BYTES_FILE
    from brt_dist.export.weights import Weights
    from brt_dist.kinds import WEIGHT_FORMATS
    from brt_dist.model.model import BlockRecurrentModel
    from brt_dist.model.parameters import logical_parameters
    from brt_dist.parallel.layout import single_process

    sizes = {"layers": 2, "width": width, "heads": 2, "head_dim": width // 2, "window": window, "vocab_size": 256}
    mixers = {"window": {}, "recurrent": {"layers": [1], "states": 16}}
    with single_process():
        config = ModelConfig.model_validate({**sizes, "mixers": mixers, "ffns": {"relu": {"width": 4 * width}}})
        network = BlockRecurrentModel(config, seed=0)
        tensors = {p.name: p.whole([p.local.detach()]) for p in logical_parameters(network)}
        WEIGHT_FORMATS["safetensors"].write(Weights.of(config, tensors, BYTES_FILE), folder)
    return str(folder)


def request(port: int, prompt: str, tokens: int, seed: int) -> Answered:
    """One streamed completion.

    Raises:
        RuntimeError: the server refused it, or the stream broke off.
    """
    connection = HTTPConnection("127.0.0.1", port, timeout=_REQUEST_SECONDS)
    body = json.dumps({"prompt": prompt, "max_tokens": tokens, "seed": seed, "stream": True})
    began, first, last = time.perf_counter(), 0.0, b""
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {answer.read().decode()}")
    for line in answer:
        if line.startswith(b"data: "):
            first, last = first or time.perf_counter() - began, line
    connection.close()
    if last.strip() != b"data: [DONE]":
        raise RuntimeError(f"the stream broke off after {last!r}")
    return Answered(first, time.perf_counter() - began, tokens)


def load(port: int, clients: int, requests: int, prompt_bytes: int, tokens: int) -> tuple[list[Answered], float]:
    """All requests, `clients` at a time; and the seconds that all of them took."""

    def one(number: int) -> Answered:
        return request(port, f"{number} ".ljust(prompt_bytes, "a text "[number % 7]), tokens, number)

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(one, range(requests)))
    return found, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--source")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=200, help="bytes of a prompt")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--streams", type=int, default=8)
    options = parser.parse_args()
    print("| clients | requests/s | tokens/s | first text, median | 95 % | a token, median | whole, 95 % |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        source = options.source or small_model(Path(folder) / "model")
        waiting = str(max(options.clients))
        with server(source, "--streams", str(options.streams), "--waiting", waiting) as (port, _):
            load(port, 1, 2, options.prompt, options.tokens)  # the first ones warm up
            for clients in options.clients:
                found, seconds = load(port, clients, options.requests, options.prompt, options.tokens)
                first, whole = ([getattr(one, name) for one in found] for name in ("first", "whole"))
                pace = [(one.whole - one.first) / max(one.tokens - 1, 1) for one in found]
                made = sum(one.tokens for one in found)
                cells = [len(found) / seconds, made / seconds, *map(_ms, (statistics.median(first), _late(first)))]
                row = [*cells, _ms(statistics.median(pace)), _ms(_late(whole))]
                shown = [cell if isinstance(cell, str) else f"{cell:.1f}" for cell in row]
                print(f"| {clients} | " + " | ".join(shown) + " |", flush=True)


def _late(seconds: list[float]) -> float:
    return sorted(seconds)[min(int(0.95 * len(seconds)), len(seconds) - 1)]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


if __name__ == "__main__":
    main()
