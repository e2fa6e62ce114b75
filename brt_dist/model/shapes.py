"""Sizes that follow from the config.  No torch in here: the config, its rules and the plan use it too."""

POSITION_BUCKETS = 32  # of T5's relative bias
TILE_TOKENS, TILE_COLUMNS = 4096, 8192  # of the logits that exist at a time
CACHED_TOKENS = 256  # instead of TILE_TOKENS on a CPU: few enough for logits to stay in the cache between passes
CACHED_LOGITS = 2**21  # of attention, that are worked on at a time on a CPU
PARTS = 4  # sub-blocks of a block of tokens, where attention works through them
SMALLEST_PART = 64  # tokens of one: with fewer, products are too small to be fast
VOCAB_MULTIPLE = 8  # rows of the token embedding per tensor parallel rank come in multiples of this, for fast products


def padded(size: int, ranks: int, multiple: int = 1) -> int:
    """The smallest number not below `size` that `ranks` ranks can split into equal multiples of `multiple`."""
    portion = multiple * ranks
    return -(-size // portion) * portion


def padded_vocab(vocab_size: int, tensor_parallel: int) -> int:
    """Rows of the token embedding over all tensor parallel ranks, padding included."""
    return padded(vocab_size, tensor_parallel, VOCAB_MULTIPLE)


def is_one_tile(rows: int, tensor_parallel: int) -> bool:
    """Whether a tile of logits has the whole vocabulary: `rows` of the embedding, all on one rank."""
    return tensor_parallel == 1 and rows <= TILE_COLUMNS


def logits_at_once(kernel: str, logits: int, least: int) -> int:
    """How many of `logits` a kernel works on at a time; `least`: those of one stream and block."""
    return min(logits, max(CACHED_LOGITS, least)) if kernel == "blocked" else logits


def sub_block(window: int) -> int:
    """Tokens of a sub-block, a divisor of the window."""
    rows = max(window // PARTS, SMALLEST_PART)
    return rows if window % rows == 0 else window
