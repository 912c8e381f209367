"""Conversations on one cache: turns of a batch fed to a patched model, and each as a single prompt for the oracle."""

import inspect
from dataclasses import replace

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

import vtc
from tests.helpers import inputs_of, model_of, patched, split, spy
from tests.helpers_decoder import Drop, additions, drops_of, options_of, resolved, truth
from tests.helpers_oracle import unpruned

BY_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
IMAGES = ((2, 1, 1), (0, 1, 2), (0, 0, 0))  # of each prompt in each turn
WRITTEN = 4  # tokens between turns


class Turn:
    """One turn of a batch. inputs: its own tokens, padded on the left, and its pictures; images: of each prompt."""

    def __init__(self, inputs: dict, images: tuple[int, ...]):
        self.inputs, self.images, self.singles = inputs, images, split(inputs, images)

    @property
    def lengths(self) -> list[int]:
        """Real tokens of each prompt."""
        return self.inputs["attention_mask"].sum(1).tolist()


def turns_of(case: str, images: tuple[tuple[int, ...], ...] = IMAGES) -> list[Turn]:
    """Turns of a batch of three; those after the first begin with a word."""
    turns = []
    for number, counts in enumerate(images):
        inputs = inputs_of(case, images=counts, seed=3 + number)
        if number:
            first = inputs["attention_mask"].argmax(1, keepdim=True)
            inputs["input_ids"] = inputs["input_ids"].scatter(1, first, 7)
        turns.append(Turn(inputs, counts))
    return turns


def conversation(turns: list[Turn], written: list[Tensor], b: int) -> dict:
    """Prompt b as one unpadded prompt: its turns, with what was written between them."""
    parts = []
    for turn, words in zip(turns, [*written, None], strict=True):
        parts.append(dict(turn.singles[b]))
        if words is not None:
            parts.append({"input_ids": words[b : b + 1], "attention_mask": torch.ones_like(words[b : b + 1])})
    names = dict.fromkeys(name for part in parts for name in part)
    for part in parts:
        part |= {n: torch.zeros_like(part["input_ids"]) for n in BY_TOKEN[2:] if n in names and n not in part}
    return {n: torch.cat([part[n] for part in parts if n in part], _axis(n, parts)) for n in names}


def _axis(name: str, parts: list[dict]) -> int:
    """The axis along which the inputs of turns stand one after another."""
    crops = any(name in part and part[name].ndim == 5 and "image_sizes" not in part for part in parts)
    return 1 if name in BY_TOKEN or crops else 0


class Talk:
    """A conversation with a patched model, turn by turn on one cache, and the oracle's answers to it.

    outputs: the logits [B, V] after each turn, and the real tokens of each prompt so far.
    """

    def __init__(self, case: str, strategy: str, images: tuple[tuple[int, ...], ...] = IMAGES, **options):
        self.model, self.options = model_of(case), options_of(strategy, **options)
        self.strategy, self.config = strategy, resolved(strategy, case, **self.options)
        self.turns, generator = turns_of(case, images), torch.Generator().manual_seed(0)
        self.written = [torch.randint(3, 90, (3, WRITTEN), generator=generator) for _ in self.turns[1:]]
        self.whole = [conversation(self.turns, self.written, b) for b in range(3)]
        self.where = [unpruned(self.model, single)[1] for single in self.whole]
        self.reports, self.outputs, self.entered = [], [], []

    @torch.no_grad()
    def run(self, kind: str = "dynamic") -> "Talk":
        """All turns; kind: of the cache."""
        text = self.model.config.get_text_config()
        static = dict(config=text, max_cache_len=600)
        self.cache = DynamicCache(config=text) if kind == "dynamic" else StaticCache(**static)
        self.mask, self.seen = torch.zeros(3, 0, dtype=torch.long), [0] * 3
        with patched(self.model, self.strategy, **self.options):
            for number, turn in enumerate(self.turns):
                logits = self._feed(turn.inputs, turn.lengths)
                self.outputs.append((logits, list(self.seen)))
                if any(turn.images):
                    self.reports.append(vtc.report(self.model))
                if number < len(self.written):
                    words = self.written[number]
                    self._feed({"input_ids": words, "attention_mask": torch.ones_like(words)}, [WRITTEN] * 3)
        return self

    def _feed(self, inputs: dict, lengths: list[int]) -> Tensor:
        self.mask = torch.cat([self.mask, inputs["attention_mask"]], 1)
        width, rows = inputs["input_ids"].shape[1], []
        for positions, seen, real in zip(self.where, self.seen, lengths, strict=True):
            part = positions[..., seen : seen + real]
            rows.append(torch.cat([part.new_zeros(*part.shape[:-1], width - real), part], -1))
        inputs = {**inputs, "attention_mask": self.mask, "position_ids": torch.stack(rows, -2)}
        if "cache_position" in inspect.signature(type(self.model).forward).parameters:  # older transformers
            inputs["cache_position"] = torch.arange(self.mask.shape[1] - width, self.mask.shape[1])
        with spy(self.model) as entered, additions(self.model) as added:
            out = self.model(**inputs, past_key_values=self.cache, use_cache=True)
        self.entered.append((entered[0]["inputs_embeds"], entered[0]["attention_mask"], list(added)))
        self.seen = [seen + real for seen, real in zip(self.seen, lengths, strict=True)]
        return out.logits[:, -1]

    def difference(self) -> float:
        """The largest difference of the logits after a turn from the oracle's."""
        largest = 0.0
        for b, single in enumerate(self.whole):
            front = self.config.projector is not None or self.config.encoder is not None
            expected = truth(self.model, single, self._drops(b), entered=self._entering(b) if front else None)
            places = expected.places.tolist()
            for logits, seen in self.outputs:
                own = expected.logits[places.index(seen[b] - 1)]
                largest = max(largest, float((logits[b] - own).abs().max()))
        return largest

    def _entering(self, b: int) -> list[Tensor]:
        """What the language model received of prompt b [n, D] without padding, and what it added to that after its
        first layers."""
        count, parts = max(len(added) for _, _, added in self.entered), []
        for embeds, mask, added in self.entered:
            real = slice(None) if mask is None else mask[b, -embeds.shape[1] :] != 0
            own = embeds[b][real]
            parts.append([own, *([x[b, -len(own) :] for x in added] or [torch.zeros_like(own)] * count)])
        return [torch.cat(rows) for rows in zip(*parts, strict=True)]

    def _drops(self, b: int) -> list[Drop]:
        """The drops of a conversation: those of its turns, which happen before the same layers."""
        own = [drops_of(r, b, self.config) for r in self.reports if any(image.prompt == b for image in r.images)]
        drops = [_joined(drops) for drops in zip(*own, strict=True)]
        return [replace(drops[0], layer=0), *drops[1:]] if self.config.encoder and drops else drops


def _joined(drops: tuple[Drop, ...]) -> Drop:
    """One drop of all images of a conversation, each of which merges as in its own turn."""
    kept = [image for drop in drops for image in drop.kept]
    contextual = None if drops[0].contextual is None else [n for drop in drops for n in drop.contextual]

    def merging(x: Tensor, hidden: Tensor, view: object, drop: Drop, runs: list[Tensor]) -> Tensor:
        first = 0
        for own in drops:
            x = own.merging(x, hidden, view, own, runs[first : first + len(own.kept)])
            first += len(own.kept)
        return x

    return replace(drops[0], kept=kept, contextual=contextual, merging=drops[0].merging and merging)


def parted(inputs: dict, place: int) -> tuple[dict, dict]:
    """The inputs of one prompt as its first `place` tokens, text alone, and the rest with the pictures."""
    first = {name: inputs[name][:, :place] for name in ("input_ids", "attention_mask")}
    return first, {n: x[:, place:] if n in BY_TOKEN[:1] + BY_TOKEN[2:] else x for n, x in inputs.items()}
