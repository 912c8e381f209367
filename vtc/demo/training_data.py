"""Training material in memory: scenes with labels, subsets of patches, and questions packed into one sequence."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from vtc.demo.architecture import BOS, EOS, PAD, build_tokenizer
from vtc.demo.questions import TYPES, ask
from vtc.demo.scenes import COLORS, GRID, SHAPES, SIZE, Scene, draw, patch_labels, scene

TOKENS = GRID * GRID
# How often each type is asked in a scene: the harder ones more often.
MIX = ("color", "shape", "exist", "position", "ocr") + ("count",) * 7 + ("relation",) * 5
IGNORE = -100


class Shard(NamedTuple):
    """Which training process this is: number `rank` of `of`; each has its own scenes and its part of a batch."""

    rank: int
    of: int


class Scenes(NamedTuple):
    """`layouts` (list of Scene), `images` uint8 [B, 112, 112, 3], `labels` int8 [B, N, 6] as from `patch_labels`."""

    layouts: list[Scene]
    images: np.ndarray
    labels: np.ndarray


def make_scenes(split: str, start: int, stop: int) -> Scenes:
    """The scenes `start` to `stop` - 1 of a split."""
    layouts = [scene(split, index) for index in range(start, stop)]
    images = np.empty((len(layouts), SIZE, SIZE, 3), np.uint8)
    labels = np.empty((len(layouts), TOKENS, 6), np.int8)
    for row, layout in enumerate(layouts):
        images[row], labels[row] = draw(layout), patch_labels(layout)
    return Scenes(layouts, images, labels)


def pixel_values(images: np.ndarray) -> torch.Tensor:
    """uint8 [B, 112, 112, 3] to what the processor makes of it, float32 [B, 3, 112, 112], -1 to 1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def scene_targets(layouts: list[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """What [CLS] must know: presence of each shape-colour pair, float32 [B, 30], and the two digits, int64 [B, 2]."""
    pairs = torch.zeros(len(layouts), len(SHAPES) * len(COLORS))
    for row, layout in enumerate(layouts):
        for item in layout.items:
            pairs[row, item.shape * len(COLORS) + item.color] = 1
    return pairs, torch.tensor([layout.number for layout in layouts])


def choose_patches(labels: np.ndarray, count: int, rng: np.random.Generator, sparse: bool = False) -> torch.Tensor:
    """Indices of `count` patches to keep while training, int64 [B, K] ascending.

    Patches that hold a centre come first, then the rest of objects and digits, then background, each in random order;
    with `sparse` the last two are mixed. This uses ground truth.
    """
    rank = rng.random(labels.shape[:2]) + 4 * labels[..., 3]
    if not sparse:
        rank += 2 * (labels[..., 0] > 0)
    return torch.from_numpy(np.sort(np.argsort(-rank, axis=1)[:, :count], axis=1))


class Packed(NamedTuple):
    """Questions of a batch, one row a scene: all int64 [B, T]; `segment` is 1, 2, ... a question and 0 for padding."""

    ids: torch.Tensor
    segment: torch.Tensor
    offset: torch.Tensor  # position of a token within its question
    targets: torch.Tensor  # id of the next token where it belongs to the answer, else IGNORE


class Packer:
    """Turns scenes into packed questions; remembers the token ids of every text that it has seen.

    ask: gives a question of a type about a scene, as `vtc.demo.questions.ask` does; types: those that there are.
    """

    def __init__(self, tokenizer=None, ask: Callable = ask, types: tuple[str, ...] = TYPES):
        self._tokenizer = tokenizer or build_tokenizer()
        self._ask, self._types = ask, types
        self._known: dict[str, list[int]] = {}

    def _encode(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._known[text]

    def prefix(self) -> torch.Tensor:
        """Ids of what stands before the image, int64 [2]."""
        return torch.tensor([BOS, *self._encode("USER:")])

    def pack(self, layouts: list, rng: np.random.Generator, mix: tuple[str, ...] = MIX) -> tuple[Packed, list]:
        """One question for each entry of `mix` and each scene, and their types as (row, segment, type) tuples."""
        rows, types = [], []
        for number, layout in enumerate(layouts):
            tokens: list[tuple[int, int, int, int]] = []
            segment = 0
            for kind in dict.fromkeys(mix):
                questions = {self._ask(layout, kind, rng) for _ in range(mix.count(kind))} - {None}
                for question in sorted(questions):
                    segment += 1
                    types.append((number, segment, self._types.index(kind)))
                    ids = self._encode(question.text + " ASSISTANT:")
                    answer = self._encode(question.answer)
                    targets = [IGNORE] * (len(ids) - 1) + [*answer, EOS]
                    tokens += [(a, segment, o, t) for o, (a, t) in enumerate(zip(ids + answer, targets, strict=True))]
            rows.append(torch.tensor(tokens))
        padding = torch.tensor([PAD, 0, 0, IGNORE])
        length = max(len(row) for row in rows)
        table = torch.stack([torch.cat((row, padding.expand(length - len(row), 4))) for row in rows])
        return Packed(*table.unbind(-1)), types
