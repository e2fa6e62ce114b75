"""`brt generate`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brt_dist.errors import DataError
from launch.commands.arguments import LocalPath, device_option, json_option, quiet_libraries, tokenizer_option

if TYPE_CHECKING:
    from brt_dist.inference import TrainedModel

_PROMPT_LIMIT = 64 << 20  # bytes


@click.command()
@click.argument("source", metavar="SOURCE")
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="Text to continue; may be repeated.")
@click.option("--prompt-file", type=LocalPath(), help="File with the text to continue; - for stdin.")
@click.option(
    "--tokens", type=click.IntRange(1), default=200, show_default=True, help="Largest number of tokens to generate."
)
@click.option("--samples", type=click.IntRange(1), default=1, show_default=True, help="Continuations of each prompt.")
@click.option("--temperature", type=float, default=1.0, show_default=True, help="0: always the most likely token.")
@click.option("--top-k", type=int, help="Choose among the K most likely tokens.")
@click.option("--top-p", type=float, help="Choose among the most likely tokens that together have probability P.")
@click.option("--min-p", type=float, help="Leave out tokens less likely than P times the most likely one.")
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True, help="Above 1: repeat less.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same text.")
@click.option("--stop", "stops", multiple=True, metavar="TEXT", help="End before this text; may be repeated.")
@click.option("--step", type=click.IntRange(0), help="Step of the checkpoint.  [default: the newest]")
@click.option("--save-memory", type=LocalPath(), help="Write the memory after the text to this file.")
@click.option("--load-memory", type=LocalPath(), help="Continue the document of a saved memory.")
@tokenizer_option
@device_option
@json_option
def generate(
    source: str,
    prompts: tuple[str, ...],
    prompt_file: Path | None,
    tokens: int,
    samples: int,
    stops: tuple[str, ...],
    step: int | None,
    save_memory: Path | None,
    load_memory: Path | None,
    tokenizer: str | None,
    device: str,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Continue a text with the model of SOURCE.

    SOURCE is a run directory, a checkpoint, a folder or URL (s3://...) of checkpoints, or an export.

    \b
      brt generate runs/books --prompt "It was a dark" --temperature 0.8 --top-p 0.95
      brt generate runs/books --prompt-file chapter1.txt --save-memory book.memory
      brt generate runs/books --load-memory book.memory --tokens 500

    A prompt may be of any length: it is read in blocks, and a token costs the same however long the text is.  The text
    is printed as it is generated, or, for several prompts or samples, one after the other.
    """
    quiet_libraries()
    texts = _texts(prompts, prompt_file, load_memory is not None)
    if len(texts) * samples > 1 and save_memory is not None:
        raise DataError("--save-memory needs one prompt and one sample, because it is the memory of one text")

    from brt_dist.generation.choose import Sampling
    from brt_dist.inference import load

    chosen = Sampling(**sampling)
    with load(source, step, device=device, tokenizer=tokenizer) as model:
        found = _generate(model, texts, tokens, samples, chosen, stops, load_memory, save_memory, live=not as_json)
    if as_json:
        click.echo(json.dumps({"source": model.where, **model.facts, "samples": found}))


def _texts(prompts: tuple[str, ...], file: Path | None, has_memory: bool) -> list[str]:
    if file is not None:
        if prompts:
            raise DataError("give --prompt or --prompt-file, not both")
        return [_read(file)]
    if prompts:
        return list(prompts)
    if has_memory:
        return [""]
    raise DataError('no prompt given; example: --prompt "Once upon a time", or --prompt-file FILE')


def _read(file: Path) -> str:
    name = "standard input" if str(file) == "-" else str(file)
    try:
        if str(file) == "-":
            data = sys.stdin.buffer.read(_PROMPT_LIMIT + 1)
        else:
            with open(file, "rb") as opened:
                data = opened.read(_PROMPT_LIMIT + 1)
        if len(data) > _PROMPT_LIMIT:
            raise DataError(f"{name} is larger than {_PROMPT_LIMIT >> 20} MiB")
        return data.decode()
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 text (byte {error.start})") from None


def _generate(
    model: "TrainedModel",
    texts: list[str],
    tokens: int,
    samples: int,
    sampling: Any,
    stops: tuple[str, ...],
    load_from: Path | None,
    save_to: Path | None,
    live: bool,
) -> list[dict[str, Any]]:
    from brt_dist.generation import generate as generation
    from brt_dist.generation import session

    decoder = model.decoder(len(texts))
    prompts = []
    for stream, text in enumerate(texts):
        unread = [] if load_from is None else session.load_memory(load_from, decoder, stream, model.owner)
        prompts.append([*unread, *(model.encode(text) if text or not unread else [])])
    if samples > 1:  # a prompt is read once for all of its samples, except for its last token
        head = {stream: prompt[:-1] for stream, prompt in enumerate(prompts) if len(prompt) > 1}
        if head:
            decoder.feed(head)
        decoder = decoder.copied([stream for stream in range(len(texts)) for _ in range(samples)])
        prompts = [prompt[-1:] for prompt in prompts for _ in range(samples)]

    is_one = len(prompts) == 1

    def show(stream: int, text: str) -> None:
        if live and is_one:
            click.echo(text, nl=False)
            sys.stdout.flush()

    found = generation.generate(decoder, prompts, tokens, model.tokenizer, sampling, stops, show)
    if live and is_one:
        click.echo()
    elif live:
        for number, one in enumerate(found):
            prompt, sample = divmod(number, samples)
            click.echo(f"--- prompt {prompt + 1}, sample {sample + 1}\n{one.text}")
    if save_to is not None:
        session.save_memory(save_to, decoder, 0, found[0].tokens[-1:], model.owner)
        click.echo(f"memory after {decoder.read[0] + 1:,} tokens: {save_to}", err=True)
    return [
        {"prompt": number // samples, "text": one.text, "tokens": len(one.tokens), "ended": one.ended}
        for number, one in enumerate(found)
    ]
