"""`brt serve`."""

import ipaddress
import json
import os
from pathlib import Path

import click

from brt_dist.errors import ConfigError, PlatformError
from launch.commands.arguments import LocalPath, device_option, json_option, quiet_libraries, tokenizer_option

TOKEN = "BRT_SERVE_TOKEN"


@click.command()
@click.argument("source", metavar="SOURCE")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port to listen on; 0: any free one."
)
@click.option("--name", help="Name of the model for clients.  [default: last part of SOURCE]")
@click.option(
    "--streams", type=click.IntRange(1), default=8, show_default=True, help="How many texts to generate at a time."
)
@click.option("--waiting", type=click.IntRange(0), default=64, show_default=True, help="How many requests may wait.")
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    default=4096,
    show_default=True,
    help="Largest number of tokens to generate.",
)
@click.option(
    "--max-prompt",
    type=click.IntRange(1),
    default=1 << 20,
    show_default=True,
    help="Largest number of tokens in a prompt.",
)
@click.option(
    "--sessions",
    type=click.IntRange(0),
    default=1000,
    show_default=True,
    help="How many sessions to keep the memory of.",
)
@click.option(
    "--session-seconds", type=float, default=3600.0, show_default=True, help="How long to keep an unused session."
)
@click.option("--token-file", type=LocalPath(), help=f"File with the token for clients (or ${TOKEN}).")
@click.option("--step", type=click.IntRange(0), help="Step of the checkpoint.  [default: the newest]")
@tokenizer_option
@device_option
@json_option
def serve(
    source: str,
    host: str,
    port: int,
    name: str | None,
    streams: int,
    waiting: int,
    max_tokens: int,
    max_prompt: int,
    sessions: int,
    session_seconds: float,
    token_file: Path | None,
    step: int | None,
    tokenizer: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Serve the model of SOURCE over HTTP, with OpenAI's completions API.

    \b
      brt serve runs/books
      curl localhost:8000/v1/completions -H 'Content-Type: application/json' \\
        -d '{"prompt": "It was a dark", "max_tokens": 50, "stream": true}'

    Requests are batched, each at its own position in its text.  A request with "session": NAME keeps the memory of its
    text, and the next one with that name continues it.  Also: GET /health, /metrics (Prometheus), /v1/models.

    Only this machine can reach it, unless you give --host and a token for clients (Authorization: Bearer TOKEN).
    --json prints the address as soon as it listens.
    """
    quiet_libraries()
    token = _token(token_file)
    if token is None and not _is_loopback(host):
        raise ConfigError(f"--host {host} can be reached by other machines: set --token-file or {TOKEN}")

    import uvicorn

    from brt_dist.inference import load
    from brt_dist.serving.app import Limits, create_app

    limits = Limits(
        streams=streams,
        waiting=waiting,
        prompt_tokens=max_prompt,
        new_tokens=max_tokens,
        sessions=sessions,
        session_seconds=session_seconds,
    )
    with load(source, step, device=device, tokenizer=tokenizer) as model:
        called = name or Path(source).name or source
        app = create_app(model, called, limits, token)
        config = uvicorn.Config(app, host, port, log_level="warning", timeout_graceful_shutdown=5)
        try:
            listening = config.bind_socket()
        except SystemExit:
            raise PlatformError(f"cannot listen on {host}:{port}: is it in use?  --port 0 takes a free one") from None
        listening.listen()  # whoever reads the address may connect at once
        address = listening.getsockname()
        url = f"http://{address[0]}:{address[1]}"
        told = {"url": url, "port": address[1], "model": called, "source": model.where}
        click.echo(json.dumps(told) if as_json else f"{model.where} on {url}", err=not as_json)
        uvicorn.Server(config).run([listening])


def _token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(TOKEN) or None
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PlatformError(f"cannot read the token in {file}: {error}") from None
    if not token:
        raise ConfigError(f"{file} is empty: it must hold the token")
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
