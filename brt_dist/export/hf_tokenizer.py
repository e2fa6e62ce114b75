"""Our tokenizers as `transformers` loads them."""

import json

from brt_dist.data.tokenizers import ByteTokenizer, HuggingFaceTokenizer, parse_tokenizer

OURS = "brt_tokenizer.json"  # the dataset's file, if it is not a Hugging Face tokenizer
_THEIRS = "tokenizer.json"


def tokenizer_files(file: bytes | None) -> dict[str, str]:
    """Files by name; none if the tokenizer is not known, or if transformers cannot load its kind (SentencePiece).

    Args:
        file: of the tokenizer.
    """
    if file is None:
        return {}
    tokenizer = parse_tokenizer(file, _THEIRS)
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "model_max_length": 10**9,  # a text may be of any length
    }
    config = {"tokenizer_config.json": json.dumps(about, indent=1) + "\n"}
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return config
    if isinstance(tokenizer, ByteTokenizer):
        return {_THEIRS: byte_level(), OURS: file.decode(), **config}
    return {OURS: file.decode()}


def byte_level() -> str:
    """The byte tokenizer as a file of Hugging Face `tokenizers`: a BPE without merges whose ids are the bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {character: byte for byte, character in enumerate(_characters())}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return str(backend.to_str())


def _characters() -> list[str]:
    """The character with which byte-level tokenizers write each byte (GPT-2's table): itself if it is printable."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
