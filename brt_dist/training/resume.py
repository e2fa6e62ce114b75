"""Sets the state that an attempt starts from: the newest checkpoint, given weights, or newly drawn weights."""

from collections.abc import Callable

from brt_dist.checkpoint.store import CheckpointStore
from brt_dist.data.stream_schedule import Cursor
from brt_dist.parallel.engine import Engine
from brt_dist.training.initial_weights import load_initial_weights
from brt_dist.training.trainer_state import TrainerState


def resume(
    store: CheckpointStore, engine: Engine, start: Cursor, tokenizer: str, report: Callable[[str], None]
) -> TrainerState:
    """Load the newest checkpoint into the engine, or else the weights of `run.init_from`; or draw them.  Collective.

    Args:
        store: the checkpoints of the run.
        engine: to load into; its weights may be unset.
        start: cursor of a new run.
        tokenizer: sha256 of the training data's tokenizer.
        report: called with a message about what was loaded.

    Returns:
        How far the run has come.

    Raises:
        CheckpointError: the checkpoint or the weights cannot be read, or do not fit this run.
    """
    checkpoint = store.open_newest()
    if checkpoint is None:
        if engine.config.run.init_from is not None:
            found = load_initial_weights(engine.config.run.init_from, engine.config, tokenizer, engine)
            report(f"starting from the {found}")
        else:
            engine.draw()
        return TrainerState(start)
    with checkpoint:
        manifest = checkpoint.manifest
        engine.load(checkpoint.read, manifest.updates)
        engine.mask_version = manifest.mask_version
    if store.is_new_dataset(manifest):
        report("the training data changed: all streams start over")
        cursor = start
    else:
        cursor = Cursor.from_json(manifest.cursor)
        if cursor.streams != engine.layout.streams:
            report(f"streams changed from {cursor.streams} to {engine.layout.streams}")
        if not manifest.has_memory and engine.carries_memory:
            report(f"{checkpoint.name} has no memory (run.keep_memory): all streams continue with cleared memory")
            cursor = cursor.interrupted()
        cursor = cursor.resized(engine.layout.streams)
    report(f"resumed after step {manifest.step}")
    return TrainerState(cursor, manifest.step, manifest.tokens, left_out=manifest.left_out)
