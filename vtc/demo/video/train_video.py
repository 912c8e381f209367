"""Train the video demo model: `python -m vtc.demo.video.train_video --out DIR --seed 0`.

Draws the clips and caches their features (`clip_features`), trains projector and language model from the weights of the
bundled demo model (`teach_clips`), and exports to DIR/model. Caches and, every 100 steps, a checkpoint are written to
DIR; the same command continues from them. Steps draw their batches from (seed, step). One process of one thread.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from vtc.demo import load
from vtc.demo.video.clip_features import TOKENS, cached_clips
from vtc.demo.video.teach_clips import clip_accuracy, teach_clips
from vtc.demo.video.video_architecture import build_video_model, export_video_model
from vtc.io.files import replacing
from vtc.io.terminal import say

CHECKED = 250  # clips of the `tune` split, to report on


def _report(model, clips, seed: int) -> None:
    """Print accuracy on `tune` with all tokens, and with random shares of them."""
    rng = np.random.default_rng([seed, 7])
    for share in (1.0, 0.25, 0.11):
        count = round(share * TOKENS)
        keep = np.sort(rng.random((len(clips.features), TOKENS)).argsort(1)[:, :count], 1)
        accuracies = clip_accuracy(model, clips, torch.from_numpy(keep), renumber=False)
        say(f"tune, {count} tokens at random: " + " ".join(f"{k} {a:.3f}" for k, a in accuracies.items()))


def train_video(out: Path, seed: int, count: int, steps: int) -> None:
    """Run or continue the training whose files are in `out`; export to `out` when done."""
    still, _ = load(attn_implementation="sdpa")
    started = time.perf_counter()
    tune = cached_clips(still, out, "tune", CHECKED, say)
    clips = cached_clips(still, out, "train", count, say)
    say(f"have {count} clips after {time.perf_counter() - started:.0f} s")
    model, checkpoint = build_video_model(still, seed), out / "state.pt"
    state: dict = {}
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state.pop("model"))
        say(f"continue from {checkpoint}")

    def save(progress: dict) -> None:
        with replacing(checkpoint) as file:
            torch.save({"model": model.state_dict(), **progress}, file)

    teach_clips(model, clips, steps, seed, say, state, save, lambda: _report(model, tune, seed))
    export_video_model(model, out / "model")
    say(f"exported after {time.perf_counter() - started:.0f} s")
    _report(model, tune, seed)


def main() -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for caches, checkpoint and model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=int, default=2500)
    parser.add_argument("--steps", type=int, default=3000)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    train_video(args.out, args.seed, args.clips, args.steps)


if __name__ == "__main__":
    main()
