"""The state that an attempt starts with: that of the newest checkpoint, given weights, or a new one."""

from collections.abc import Callable

from brt_dist.checkpoint.store import CheckpointStore
from brt_dist.data.stream_schedule import Cursor
from brt_dist.parallel.engine import Engine
from brt_dist.training.initial_weights import begin_from
from brt_dist.training.progress import Progress


def resume(
    store: CheckpointStore, engine: Engine, start: Cursor, tokenizer: str, report: Callable[[str], None]
) -> Progress:
    """Load the newest checkpoint into the engine, or else the weights of `run.init_from`, if any.  Collective.

    Args:
        start: cursor of a new run.
        tokenizer: sha256 of the training data's.
        report: told what was loaded.

    Returns:
        How far the run has come.

    Raises:
        CheckpointError: what is there cannot be read, or belongs to another run.
    """
    checkpoint = store.open_newest()
    if checkpoint is None:
        if engine.config.run.init_from is not None:
            found = begin_from(engine.config.run.init_from, engine.config, tokenizer, engine)
            report(f"starting with the {found}")
        return Progress(start)
    with checkpoint:
        manifest = checkpoint.manifest
        engine.load(checkpoint.read, manifest.updates)
    if store.is_new_dataset(manifest):
        report("the training data is another than before: streams begin anew")
        cursor = start
    else:
        cursor = Cursor.from_json(manifest.cursor)
        if cursor.streams != engine.layout.streams:
            report(f"{engine.layout.streams} streams, {cursor.streams} before")
        cursor = cursor.resized(engine.layout.streams)
    report(f"resumed after step {manifest.step}")
    return Progress(cursor, manifest.step, manifest.tokens)
