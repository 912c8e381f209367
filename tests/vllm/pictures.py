"""Prompts and pictures of the engine tests: the demo's questions about its scenes, and pictures of other sizes."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.vllm.reference import Ask
from vtc.demo.architecture import prompt
from vtc.demo.benchmark import sample
from vtc.demo.questions import TYPES, candidates
from vtc.demo.scenes import draw, scene


def scene_file(folder: Path, index: int) -> Path:
    """A held-out scene as a picture file, written once."""
    file = folder / f"scene{index}.png"
    if not file.is_file():
        Image.fromarray(draw(scene("test", index))).save(file)
    return file


def questions(index: int, count: int) -> list[str]:
    """`count` different questions about a scene, of as many types as there are."""
    found = [[q.text for q in candidates(scene("test", index), kind)] for kind in TYPES]
    turns = [texts[n] for n in range(max(map(len, found))) for texts in found if n < len(texts)]
    return list(dict.fromkeys(turns))[:count]


def scene_asks(folder: Path, scenes: int = 10, each: int = 5) -> list[Ask]:
    """`each` questions about each of `scenes` scenes, one picture a prompt."""
    return [
        Ask(prompt(text), (scene_file(folder, index),)) for index in range(scenes) for text in questions(index, each)
    ]


def pair_asks(folder: Path, count: int = 12) -> list[Ask]:
    """`count` prompts about two pictures each."""
    return [
        Ask(prompt(questions(i, 3)[i % 3], images=2), (scene_file(folder, i), scene_file(folder, (i + 3) % 10)))
        for i in range(count)
    ]


def benchmark_asks(folder: Path, count: int) -> tuple[list[Ask], list[str]]:
    """The first held-out samples of the demo's benchmark, and their right answers."""
    asks, right = [], []
    for row in (sample("test", index) for index in range(count)):
        file = folder / f"{row['id']}.png"
        row["image"].save(file)
        asks.append(Ask(prompt(row["question"]), (file,)))
        right.append(row["answer"])
    return asks, right


def noise_file(folder: Path, height: int, width: int, seed: int = 0) -> Path:
    """A picture of coarse coloured blocks under a gradient, [height, width] pixels."""
    file = folder / f"noise{seed}_{height}x{width}.png"
    if not file.is_file():
        rng = np.random.default_rng([seed, height, width])
        coarse = rng.integers(0, 256, (height // 14 + 1, width // 14 + 1, 3))
        pixels = coarse.repeat(14, 0).repeat(14, 1)[:height, :width] * 3 // 4
        pixels = pixels + (np.arange(height)[:, None, None] * 64 // height)
        Image.fromarray(pixels.astype(np.uint8)).save(file)
    return file


IMAGE = 120  # the token of a picture in the models of `tests.vllm.checkpoints`
PLACES = {
    "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    "llava_next": "<image>\n",
    "llava_siglip": "<image>\n",
}  # their text for it
PATCHES = [(112, 112), (140, 252), (336, 112), (84, 308), (196, 168)]  # (height, width) for Qwen, two upright
TILED = [(60, 64), (32, 90), (100, 30), (64, 48), (20, 120)]  # the same for LLaVA-NeXT
WORDS = ("What is it?", "Tell me more!", "And now:", "Why?")
GROUPS = ((0,), (1,), (2,), (3,), (4,), (0, 1), (2, 3), (4, 0), (3, 3), (1, 2, 0), (4, 2, 1), (2,), (0, 1), (4,))


def noise_asks(folder: Path, kind: str, turn: int = 0, tokens: int = 8) -> list[Ask]:
    """Fourteen prompts of one, two or three pictures of five sizes, that no token ends, for a model of PLACES.

    Four texts for fourteen prompts: several differ in their pictures only. turn: other words after the same pictures.
    """
    sizes, asks = TILED if kind.startswith("llava") else PATCHES, []
    for number, group in enumerate(GROUPS):
        files = tuple(noise_file(folder, *sizes[i], seed=number // 11) for i in group)
        text = WORDS[(number + turn) % len(WORDS)]
        asks.append(Ask(f"USER: {PLACES[kind] * len(group)}{text}\nASSISTANT:", files, tokens, ignore_eos=True))
    return asks


def text_ask(tokens: int = 8) -> Ask:
    """A prompt without a picture, for the models of `noise_asks`."""
    return Ask("USER: Tell me something!\nASSISTANT:", (), tokens, ignore_eos=True)
