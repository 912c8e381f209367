"""Conversations on one cache: batches of turns fed to a patched model, and each one as a single prompt for the oracle."""

from dataclasses import replace

import torch
from torch import Tensor, nn

import vtc
from tests.helpers import split
from tests.helpers_decoder import Drop, drops_of, truth
from vtc.check.batch import real_columns
from vtc.patching import find_family

BY_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")


class Turn:
    """One turn of a batch. inputs: its own tokens, padded on the left, and its pictures; images: of each prompt."""

    def __init__(self, inputs: dict, images: tuple[int, ...]):
        self.inputs, self.images, self.singles = inputs, images, split(inputs, images)

    def without_bos(self) -> "Turn":
        """The turn as one that follows another: its first real token is a word instead of the start of a text."""
        first = self.inputs["attention_mask"].argmax(1, keepdim=True)
        ids = self.inputs["input_ids"].scatter(1, first, 7)
        return Turn({**self.inputs, "input_ids": ids}, self.images)


def conversation(turns: list[Turn], answers: list[Tensor], b: int) -> dict:
    """Prompt b as one unpadded prompt: its turns, with what was written between them."""
    parts = []
    for turn, answer in zip(turns, [*answers, None], strict=True):
        parts.append(turn.singles[b])
        if answer is not None:
            words = {"input_ids": answer[b : b + 1], "attention_mask": torch.ones_like(answer[b : b + 1])}
            words |= {n: torch.zeros_like(words["input_ids"]) for n in BY_TOKEN[2:] if n in turn.inputs}
            parts.append(words)
    names = dict.fromkeys(name for part in parts for name in part)
    return {n: torch.cat([part[n] for part in parts if n in part], 1 if n in BY_TOKEN else 0) for n in names}


def positions_in(model: nn.Module, whole: list[dict]) -> list[Tensor]:
    """The stock model's positions [L] or [3, L] of each conversation."""
    from tests.helpers_oracle import unpruned

    return [unpruned(model, single)[1] for single in whole]


@torch.no_grad()
def feed(model: nn.Module, turn: Turn, cache, mask: Tensor | None, where: list[Tensor], seen: list[int]):
    """One turn through a patched model, on what the cache holds; where: positions of each conversation; seen: real
    tokens before it. Returns the output and the mask over all so far."""
    inputs, own = dict(turn.inputs), turn.inputs["attention_mask"]
    mask = own if mask is None else torch.cat([mask, own], 1)
    rows = []
    for b, positions in enumerate(where):
        real = int(own[b].sum())
        part = positions[..., seen[b] : seen[b] + real]
        rows.append(torch.cat([part.new_zeros(*part.shape[:-1], own.shape[1] - real), part], -1))
    inputs |= {"attention_mask": mask, "position_ids": torch.stack(rows, -2)}
    return model(**inputs, past_key_values=cache, use_cache=True), mask


def drops_over(reports: list, b: int, config) -> list[Drop]:
    """The drops of a conversation: those of its turns, which happen before the same layers."""
    per_turn = [drops_of(report, b, config) for report in reports if any(i.prompt == b for i in report.images)]
    if not per_turn:
        return []
    return [replace(drops[0], kept=[k for drop in drops for k in drop.kept]) for drops in zip(*per_turn, strict=True)]


__all__ = ["Turn", "conversation", "drops_over", "feed", "find_family", "positions_in", "real_columns", "truth", "vtc"]
