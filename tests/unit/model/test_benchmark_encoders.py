"""The comparisons of encoders, of languages and of the sparse FFN: equal sizes, right labels, right counts."""

from pathlib import Path

import pytest
import torch

from benchmarks import languages, masked, sparse
from benchmarks.models import parameter_count
from brt_dist.config.rules import check
from brt_dist.config.schema import ModelConfig
from brt_dist.languages import LANGUAGES
from brt_dist.model.ffn.relu import ReluFFN
from brt_dist.model.ffn.sparse import SparseFFN


def test_encoders_have_one_size_and_can_run() -> None:
    for segment in masked.SEGMENTS:
        configs = [masked.configuration(kind, segment, 257, 0, 9, directory="run") for kind in masked.KINDS]
        for config in configs:
            check(config)
            assert config.data.segment * config.data.streams == masked.TOKENS
        sizes = [parameter_count(config.model) for config in configs]
        assert abs(sizes[0] - sizes[1]) <= 4 * 64  # a unit of each of four layers


def test_language_models_have_one_size() -> None:
    sizes = {kind: parameter_count(languages.model_of(kind, 6)) for kind in languages.MODELS}
    assert max(sizes.values()) - min(sizes.values()) <= 64, sizes


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_batch_holds_words_and_their_labels(name: str) -> None:
    language = LANGUAGES[name](languages.TYPES, languages.DEPTH)
    train, held = languages.words_of(language, 40, 20, 3)
    assert not {tuple(word.symbols) for word in train} & {tuple(word.symbols) for word in held}
    batch = languages.batch_of(held, languages.slots_of(name))
    for row, word in enumerate(held):
        size = int(batch.mask[row].sum())
        assert batch.symbols[row, :size].tolist() == word.symbols[:-1]
        assert batch.target[row, :size].tolist() == word.symbols[1:]
        told = [language.run(word.symbols[1:place]) or [] for place in range(1, size + 1)]
        assert batch.states[row, :size].tolist() == [at[-1].state for at in told]
        stacks = [tuple(symbol for symbol in stack if symbol) for stack in batch.stacks[row, :size].tolist()]
        assert stacks == [at[-1].stack for at in told]


def test_a_language_with_few_words_keeps_two_thirds_to_train_on() -> None:
    """a^n b^n in blocks has 2^(n-1) words of 2n symbols."""
    train, held = languages.words_of(LANGUAGES["anbn"](2, 4), 500, 300, 3)
    assert len(held) == (2**7 - 1) // 3
    assert len({tuple(word.symbols) for word in train}) > 60 and len(train) == 500


def test_flops_of_the_paths_are_those_declared() -> None:
    rows = {row["path"]: row for row in sparse.measured(((64, 256),), 1)}
    model, kind = ModelConfig(width=64, dropout=0.0), SparseFFN(blocks=4, block_size=64, rank=64)
    assert rows["dense"]["flops"] == ReluFFN(width=256).flops(model, executed=True)
    assert rows["sparse, chosen units"]["flops"] == kind.decode_flops(model)
    assert rows["sparse, whole matrices"]["flops"] == kind.flops(model, executed=True)
    assert rows["sparse, whole matrices"]["weights_read"] == sum(matrix.size for matrix in kind.parameters(model))
    found, x = sparse.paths(64, 256), torch.randn(1, 1, 64)
    with torch.no_grad():
        one, other = (found[name][0](x) for name in ("sparse, chosen units", "sparse, whole matrices"))
    assert (one - other).abs().max() < 1e-5


def test_the_figures_in_the_docs_are_those_counted() -> None:
    """Of the authors' C4-medium: FLOPs of a token, and weights that it reads."""
    model = ModelConfig(width=1024)
    dense, kind = ReluFFN(width=6144).flops(model, executed=True), SparseFFN(blocks=96, block_size=64, rank=64)
    unread = 2 * model.width * (kind.width - kind.blocks)
    read = sum(matrix.size for matrix in kind.parameters(model)) - unread
    text = " ".join((Path(__file__).parents[3] / "docs" / "kinds" / "sparse.md").read_text().split())
    told = f"takes {kind.decode_flops(model) / 1e6:.2f} MFLOP instead of {dense / 1e6:.2f}"
    assert told in text and f"reads {read / 1e6:.2f} million weights" in text
