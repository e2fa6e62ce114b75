"""`brt data corpus`."""

import json
from pathlib import Path
from typing import Any

import click

from launch.commands.arguments import LocalPath, json_option
from pipelines.console import console

_folder = LocalPath(file_okay=False)


@click.command()
@click.argument("name", type=click.Choice(["books", "code", "facts", "cfg"]))
@click.option(
    "--out", required=True, type=_folder, help="Folder of the corpus; train/ and validation/ are written into it."
)
@click.option(
    "--language",
    default="dyck",
    show_default=True,
    type=click.Choice(["anbn", "dyck", "parity", "palindrome"]),
    help="cfg: a^n b^n in blocks, nested brackets, an even number of 0, or words with their mirror image.",
)
@click.option("--types", default=2, show_default=True, type=click.IntRange(1, 4), help="cfg: brackets, or letters [k].")
@click.option("--depth", default=4, show_default=True, type=click.IntRange(1), help="cfg: deepest stack [m].")
@click.option("--length", default=24, show_default=True, type=click.IntRange(1), help="cfg: longest word.")
@click.option("--words", default=10_000, show_default=True, type=click.IntRange(1), help="cfg: words to train on.")
@click.option("--held-out", default=1_000, show_default=True, type=click.IntRange(1), help="cfg: words held out.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="cfg, facts: random seed.")
@click.option(
    "--from",
    "roots",
    multiple=True,
    type=_folder,
    help="code: a folder that holds packages; unset: the environment's.  facts: an existing corpus; unset: the books.",
)
@click.option(
    "--per",
    default="package",
    show_default=True,
    type=click.Choice(["package", "folder"]),
    help="code: what a document is; folder: each folder of a package with 20 kB of modules or more.",
)
@click.option(
    "--window", default=512, show_default=True, type=click.IntRange(1), help="facts: size of a window, in bytes."
)
@click.option(
    "--every",
    default=500,
    show_default=True,
    type=click.IntRange(1),
    help="facts: about one fact in this many bytes of text.",
)
@click.option(
    "--farthest",
    default=1_000,
    show_default=True,
    type=click.IntRange(1, 1_000),
    help="facts: largest distance from a statement to its question, in windows.",
)
@click.option(
    "--at-once",
    type=click.IntRange(1),
    help="facts: how many may be open at a time, stated but not yet asked for; unset: any number.",
)
@click.option(
    "--copies",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="facts: how often each document appears, each time with other facts.",
)
@json_option
def corpus(name: str, out: Path, as_json: bool, **options: Any) -> None:
    """Make a small corpus to experiment with.

    books: 42 works of Shakespeare (5 MB), downloaded, with four whole plays held out in validation/.

    code: the Python packages of this environment, one document per package, one package in 16 held out in validation/.

    facts: sentences like "The code of the red tower is 4817." in the books, or in another corpus (--from), each stated
    once and asked for once, up to 1,000 windows later; questions/ lists what is asked where.  Several facts are open at
    a time, unless --at-once limits them.

    cfg: words of a bounded context-free language, each equally likely, one document per word.
    """
    from dataclasses import asdict

    from pipelines.code_corpus import write_code
    from pipelines.corpora import fetch_books, write_words
    from pipelines.facts_corpus import Settings, put_facts_into

    def given(*names: str) -> dict[str, Any]:
        return {key: options[key] for key in names}

    roots = options["roots"]
    if name == "books":
        made = fetch_books(out)
    elif name == "code":
        made = write_code(out, roots, options["per"])
    elif name == "facts":
        if len(roots) > 1:
            raise click.UsageError("facts go into a single corpus: give --from only once")
        settings = Settings(**given("window", "every", "farthest", "at_once", "copies", "seed"))
        made = put_facts_into(roots[0] if roots else None, out, settings)
    else:
        longest, language = options["length"], options["language"]
        made = write_words(out, language, longest=longest, **given("types", "depth", "words", "held_out", "seed"))
    counts = f"{len(made.train)} training documents, {len(made.validation)} held out"
    if name == "cfg":
        counts = f"{options['words']} training words, {options['held_out']} held out"
    console().print(f"{out}: {counts}\n{made.origin}", soft_wrap=True)
    if as_json:
        click.echo(json.dumps(asdict(made)))
