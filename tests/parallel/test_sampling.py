"""Text that a model generates: the same tokens in every layout, and in a loop over one process's model."""

from pathlib import Path
from typing import Any

import pytest

from brt_dist.config.schema import Config
from brt_dist.generation.sample import reads_token_by_token
from tests.parallel.pool import RankPool
from tests.parallel.relayout import config, documents
from tests.parallel.test_mixers import model_section

pytestmark = pytest.mark.slow

COUNT = 9
LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {},
    "tp2-dp2": {"tensor": 2, "data": 2},  # token by token, like the first
    "tp2-pp2": {"tensor": 2, "pipeline": 2},
    "dp2-zero3": {"data": 2, "zero_stage": 3},
}


def rank_main(rank: int, store: str, given: Config) -> list[Any]:
    """Sampled and likeliest tokens, and the texts; of one process also those of a plain loop."""
    import numpy as np
    import torch
    import torch.distributed as dist

    from brt_dist.data.dataset import Dataset
    from brt_dist.generation.prompts import samples
    from brt_dist.generation.sample import sample
    from brt_dist.model.model import BlockRecurrentModel, full_logits
    from brt_dist.parallel.device import choose
    from brt_dist.parallel.engine import build_engine
    from brt_dist.parallel.layout import Layout, finalize, initialize

    layout = Layout.of(given, rank)
    device = choose("cpu", rank)
    initialize(layout, device, 120.0, dist.FileStore(store, layout.world_size))
    streams, window = given.data.streams, given.model.window
    prompts = np.random.default_rng(3).integers(0, 256, (streams, window + 1))
    try:
        with Dataset.open(given.data.dataset) as data:
            engine = build_engine(given, layout, device)
            found: list[Any] = [sample(engine, prompts, COUNT, seed=5).tolist()]
            found.append(sample(engine, prompts, COUNT, temperature=0).tolist())
            found.append(samples(engine, data, COUNT, seed=1))
            before = [values.clone() for *_, values in engine.memory.tensors()]
            assert all(torch.equal(a, b) for a, (*_, b) in zip(before, engine.memory.tensors(), strict=True))
            engine.close()
        if layout.world_size == 1:
            model = BlockRecurrentModel(given.model, given.run.seed).eval()
            tokens = torch.from_numpy(prompts)
            for _ in range(COUNT):  # of each prefix alone, padded to whole windows with other tokens than above
                padding = -tokens.shape[1] % window
                read = torch.cat([tokens, torch.full((streams, padding), 7)], 1)
                starts = torch.zeros(streams, read.shape[1] // window, dtype=torch.bool)
                starts[:, 0] = True
                with torch.no_grad():
                    logits, _ = model(read, model.blank_memory(streams), starts)
                scores = full_logits(logits, given.model.vocab_size or 0)[:, tokens.shape[1] - 1]
                tokens = torch.cat([tokens, scores.argmax(-1, keepdim=True)], 1)
            found.append(tokens.tolist())
        return found
    finally:
        finalize()


def test_the_same_text_in_every_layout(ranks: RankPool, tmp_path: Path) -> None:
    documents(tmp_path)
    found = {}
    for name, parallel in LAYOUTS.items():
        given = config(tmp_path / "dataset", tmp_path / name, parallel)
        found[name] = ranks.run(given.parallel.world_size, rank_main, given)
    ((sampled, likeliest, texts, known),) = found["one"]
    assert likeliest == known
    assert sampled != likeliest and len({tuple(row) for row in sampled}) == len(sampled)
    assert 0 < len(texts) <= 4 and all(text.prompt and text.text for text in texts)
    for results in found.values():
        for number, result in enumerate(results):
            assert result[:2] == [sampled, likeliest]
            assert result[2] == ([] if number else texts)


def test_every_kind_of_mixer_is_read_token_by_token(ranks: RankPool, tmp_path: Path) -> None:
    """On tensor parallel ranks, and where segments are read again for each token."""
    documents(tmp_path)
    found = []
    for parallel in ({"tensor": 2}, {"tensor": 2, "sequence_parallel": True}):
        model = model_section(width=32, heads=2, head_dim=16, window=16, vocab_size=256)
        given = config(tmp_path / "dataset", tmp_path / str(len(found)), parallel, model=model)
        assert reads_token_by_token(given) == (not found)
        found.append(ranks.run(2, rank_main, given)[0][:2])
    assert found[0] == found[1]
