"""Tokenizers: nothing is lost, the same corpus gives the same file, and a text means the same in pieces and whole."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brt_dist.data.tokenizers import (
    HuggingFaceTokenizer,
    bpe_size,
    check_round_trip,
    load_tokenizer,
    parse_tokenizer,
    pieces,
    train_bpe,
)
from brt_dist.errors import DataError

TEXTS = [(Path(__file__).parent / name).read_text() for name in ("test_schedule.py", "test_tokenizers.py")]
BPE = train_bpe(TEXTS, 600)
TOKENIZERS = [parse_tokenizer(BPE, "bpe"), parse_tokenizer(b'{"kind": "bytes", "vocab_size": 256}', "bytes")]
unicode_texts = st.text(st.characters(codec="utf-8"))


def bpe_with(**changes: object) -> bytes:
    return json.dumps({**json.loads(BPE), **changes}).encode()


@settings(deadline=None)
@given(text=unicode_texts)
def test_every_text_comes_back(text: str) -> None:
    for tokenizer in TOKENIZERS:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.uint32 and (not ids.size or ids.max() < tokenizer.vocab_size)
        assert tokenizer.decode(ids) == text


def test_bytes_are_bytes() -> None:
    assert TOKENIZERS[1].encode("aé").tolist() == [97, 0xC3, 0xA9]
    assert TOKENIZERS[1].decode([97, 0xC3]) == "a\ufffd"
    assert TOKENIZERS[1].vocab_size == 256


def test_training_compresses_and_is_the_same_every_time() -> None:
    assert train_bpe(TEXTS, 600) == BPE
    assert TOKENIZERS[0].vocab_size == 600
    assert len(TOKENIZERS[0].encode(TEXTS[0])) < 0.6 * len(TEXTS[0].encode())


@settings(deadline=None)
@given(text=unicode_texts | st.text("ab .\n\r\t(1é\u3000", max_size=60), size=st.integers(1, 20))
def test_a_text_in_pieces_has_the_ids_of_the_whole(text: str, size: int) -> None:
    cut = list(pieces(text, size))
    assert "".join(cut) == text
    tokenizer = TOKENIZERS[0]
    assert isinstance(tokenizer, HuggingFaceTokenizer) and tokenizer.cuts
    assert tokenizer._encode(cut) == tokenizer._encode([text])


def test_a_tokenizer_that_cannot_be_cut_gets_whole_texts() -> None:
    """One that joins line ends to punctuation (as those of the Llama 3 family do), and one that marks beginnings."""
    split = {
        "type": "Split",
        "pattern": {"Regex": r"\p{L}+|[^\s\p{L}]+[\r\n]*|\s+"},
        "behavior": "Isolated",
        "invert": False,
    }
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    joining = HuggingFaceTokenizer(bpe_with(pre_tokenizer={"type": "Sequence", "pretokenizers": [split, level]}), "x")
    marking = HuggingFaceTokenizer(bpe_with(pre_tokenizer={**level, "add_prefix_space": True, "use_regex": True}), "x")
    assert not marking.cuts and not joining.cuts
    text = "end.\n" * 100_000
    assert joining.encode(text).tolist() == joining._encode([text])


def test_settings_of_the_file_do_not_touch_texts() -> None:
    """Truncation and padding that were saved with a tokenizer are for other uses; special tokens in a text are text."""
    special = {"id": 600, "content": "<|end|>", "special": True, "single_word": False, "lstrip": False}
    special |= {"rstrip": False, "normalized": False}
    file = bpe_with(
        truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 64},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<|end|>",
        },
        added_tokens=[special],
    )
    tokenizer = parse_tokenizer(file, "x")
    assert tokenizer.vocab_size == 601
    text = "a text of more than four tokens <|end|>"
    assert tokenizer.encode(text).tolist() == TOKENIZERS[0].encode(text).tolist()


def test_a_tokenizer_that_loses_text_is_refused_and_shown() -> None:
    lossy = parse_tokenizer(bpe_with(normalizer={"type": "Lowercase"}), "x")
    check_round_trip(lossy, "all small", "a.txt")
    with pytest.raises(DataError, match=r"a\.txt: .*'Big' became 'big' at character 4.*--lossy allow"):
        check_round_trip(lossy, "all Big", "a.txt")


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the tokenizer"):
        load_tokenizer(tmp_path / "nowhere.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(DataError, match="it is not JSON"):
        load_tokenizer(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(DataError, match="not a Hugging Face tokenizer file"):
        load_tokenizer(tmp_path / "x.json")
    for spec in ("bpe:", "bpe:256", "bpe:many", "bpe:-5"):
        with pytest.raises(DataError, match="above 256"):
            bpe_size(spec)
    assert bpe_size("bpe:4096") == 4096 and bpe_size("bytes") is None


def sentence_piece(folder: Path) -> Path:
    """A small SentencePiece model of real text, made by the library itself."""
    import sentencepiece

    lines = (line for text in TEXTS for line in text.splitlines())
    prefix = folder / "small"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_prefix=str(prefix), vocab_size=500, minloglevel=2, num_threads=1
    )
    return prefix.with_suffix(".model")


def test_a_sentencepiece_model_gives_the_ids_of_the_library(tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    path = sentence_piece(tmp_path)
    library = SentencePieceProcessor(model_file=str(path))
    tokenizer = load_tokenizer(path)
    assert (tokenizer.kind, tokenizer.vocab_size) == ("sentencepiece", 500)
    line = "def test_every_text_comes_back(text: str) -> None:"
    assert tokenizer.encode(line).tolist() == library.encode(line) and tokenizer.decode(tokenizer.encode(line)) == line
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.file)  # as a dataset keeps it
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert again.file == tokenizer.file and again.encode(line).tolist() == library.encode(line)
    check_round_trip(tokenizer, line, "a.txt")
    with pytest.raises(DataError, match=r"a\.txt: .*'\\n\\nb' became ' b' at character 1"):
        check_round_trip(tokenizer, "a\n\nb", "a.txt")


def test_files_that_are_no_sentencepiece_model(tmp_path: Path) -> None:
    (tmp_path / "x.model").write_bytes(b"\xff\xfe no model")
    with pytest.raises(DataError, match="not a SentencePiece model"):
        load_tokenizer(tmp_path / "x.model")
    with pytest.raises(DataError, match="contains no SentencePiece model"):
        parse_tokenizer(b'{"kind": "sentencepiece", "model": 3}', "x")
