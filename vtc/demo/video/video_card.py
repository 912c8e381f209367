"""Measure the shipped video model: `python -m vtc.demo.video.video_card --limit 500` prints the table of its card.

Stock `generate`, float32, greedy, all tokens: on the clips, on what says less (the middle frame alone, shown eight
times; the frames in the opposite order), and on the floor (the clip of another sample of the same type).
"""

import argparse
from collections.abc import Iterable

import numpy as np
import torch

from vtc.demo.architecture import prompt
from vtc.demo.benchmark import is_correct
from vtc.demo.training_data import pixel_values
from vtc.demo.video import VIDEO_MODEL_DIR, load_video
from vtc.demo.video.clip_benchmark import clip_frames, clip_majority, clip_row
from vtc.demo.video.clip_features import TOKENS
from vtc.demo.video.clip_questions import CLIP_TYPES
from vtc.demo.video.clip_scenes import FRAMES
from vtc.demo.video.video_architecture import VIDEO_TOKEN
from vtc.io.terminal import say

CLIPS_AT_ONCE = 16


@torch.no_grad()
def answer_clips(model, tokenizer, clips: np.ndarray, questions: list[str]) -> list[str]:
    """Answers of the unmodified model to B questions about clips uint8 [B, 8, 112, 112, 3]."""
    texts = [prompt(VIDEO_TOKEN * TOKENS + " " + question, images=0) for question in questions]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    pixels = pixel_values(clips.reshape(-1, *clips.shape[2:])).unflatten(0, clips.shape[:2])
    out = model.generate(**inputs, pixel_values_videos=pixels)
    return tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def shares_by_type(rows: Iterable[dict], answers: Iterable[str]) -> dict[str, float]:
    """Accuracy, 0 to 1, by type, and `macro`, their mean."""
    hits: dict[str, list[bool]] = {kind: [] for kind in CLIP_TYPES}
    for row, text in zip(rows, answers, strict=True):
        hits[row["type"]].append(is_correct(row["answer"], text))
    accuracies = {kind: sum(right) / len(right) for kind, right in hits.items() if right}
    return accuracies | {"macro": sum(accuracies.values()) / len(accuracies)}


def measure_clips(folder, split: str, limit: int) -> dict[str, dict[str, float]]:
    """Accuracies by type of the model in `folder` on the first `limit` samples of a split, by what it is shown."""
    model, tokenizer = load_video(folder)
    rows = [clip_row(split, index) for index in range(limit)]
    done: dict[str, list[str]] = {}
    for start in range(0, limit, CLIPS_AT_ONCE):
        part = rows[start : start + CLIPS_AT_ONCE]
        clips, others = (
            np.stack([np.stack([np.asarray(f) for f in clip_frames(split, row["index"] + offset)]) for row in part])
            for offset in (0, len(CLIP_TYPES))
        )
        shown = {
            "the clip": clips,
            "its frames in the opposite order": clips[:, ::-1],
            "its middle frame, eight times": np.repeat(clips[:, FRAMES // 2 : FRAMES // 2 + 1], FRAMES, axis=1),
            "another clip": others,
        }
        for name, pixels in shown.items():
            questions = [row["question"] for row in part]
            done.setdefault(name, []).extend(answer_clips(model, tokenizer, np.ascontiguousarray(pixels), questions))
    base = clip_majority(split, limit)
    shares = {name: shares_by_type(rows, answers) for name, answers in done.items()}
    return shares | {"nothing, commonest answer": base | {"macro": sum(base.values()) / len(base)}}


def main() -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(VIDEO_MODEL_DIR))
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=500, help="samples, of five types in turn")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    heads = ["macro", *CLIP_TYPES]
    say("| shown | " + " | ".join(heads) + " |\n" + "|---" * (len(heads) + 1) + "|")
    for name, row in measure_clips(args.model, args.split, args.limit).items():
        say(f"| {name} | " + " | ".join(f"{100 * row[head]:.1f}" for head in heads) + " |")


if __name__ == "__main__":
    main()
