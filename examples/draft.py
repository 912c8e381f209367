"""Self-speculation: a draft sees a tenth of the visual tokens and proposes; the full model checks, and decides.

python examples/draft.py                                        (100 questions about the bundled model's scenes)
python examples/draft.py --strategy divprune --keep 0.05 --limit 20
"""

import argparse

import torch

import vtc
from vtc.demo.benchmark import sample
from vtc.eval import models

WRITTEN = 8  # tokens of an answer at most


def main() -> None:
    """Answers with and without a draft, and counts the full model's forwards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategy", default="hiprune")
    parser.add_argument("--keep", type=float, default=0.1)
    parser.add_argument("--limit", type=int, default=100)
    given = parser.parse_args()
    demo, calls = models.load("demo", {}, "cpu"), []
    draft = vtc.draft(demo.model, given.strategy, keep=given.keep)
    demo.model.register_forward_pre_hook(lambda *args: calls.append(args))
    plain = drafted = 0
    for i in range(given.limit):
        row = sample("test", i)
        inputs = demo.encode([row["question"]], [[row["image"]]])
        options = dict(max_new_tokens=WRITTEN, do_sample=False)
        calls.clear()
        expected = demo.model.generate(**inputs, **options)
        plain += len(calls)
        calls.clear()
        if not torch.equal(draft.generate(**inputs, **options), expected):
            print(f"question {i} is answered in another way")
        drafted += len(calls)
    print(
        f"{given.limit} answers with {given.strategy} at {given.keep:g} as the draft: "
        f"{drafted} forwards of the full model instead of {plain}"
    )


if __name__ == "__main__":
    main()
