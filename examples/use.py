"""Use a trained model from Python: evaluate it, let it write, and read with its memory.

    python examples/use.py runs/my chapter.txt

MODEL is a run directory, a checkpoint, or a folder that `brt export` wrote; TEXT is any text file.
"""

import argparse
from pathlib import Path

import torch

import brt_dist


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("text", type=Path, metavar="TEXT")
    options = parser.parse_args()
    text = options.text.read_text()

    with brt_dist.load(options.model) as model:
        # How well does it predict the text, and what is the memory that it carries over segments worth?
        carried, cleared = model.evaluate([text]), model.evaluate([text], clear_memory=True)
        worth = cleared.bits_per_token - carried.bits_per_token
        print(f"{carried.tokens} tokens: {carried.bits_per_token:.3f} bits/token, memory is worth {worth:.3f}")

        # Two texts of different lengths, continued together.
        sampling = brt_dist.Sampling(temperature=0.8, top_p=0.95, seed=1)
        for continuation in model.generate([text[:200], "Once upon"], tokens=40, sampling=sampling):
            print(f"... {continuation.text}")

        # Segment by segment, as in training: logits, and the memory for the next segment.
        window, ids = model.config.window, model.encode(text)
        memory = model.blank_memory()
        for begin in range(0, len(ids) - window + 1, window):
            segment = torch.tensor([ids[begin : begin + window]])
            logits, memory = model.read(segment, memory, starts=torch.tensor([[begin == 0]]))
            likeliest = model.tokenizer.decode([int(logits[0, -1].argmax())])
        print(f"after {begin + window} tokens, the likeliest next one is {likeliest!r}")


if __name__ == "__main__":
    main()
