"""Decode: maps generate()'s bookkeeping, which is for the unpruned prompt, onto the pruned cache at each step."""

import torch
from torch import Tensor

from vtc.core.errors import PatchError
from vtc.engine.masks import cut_decode
from vtc.engine.state import PrunedPrompt


def unpruned_positions(prompt: PrunedPrompt, tokens: int, mrope: bool) -> torch.Tensor:
    """Positions of the next `tokens` tokens as if nothing had been dropped: [B, tokens], or [3, B, tokens] (M-RoPE)."""
    steps = torch.arange(tokens, device=prompt.next_position.device) + (prompt.seen - prompt.length)
    positions = prompt.next_position.unsqueeze(1) + steps
    return positions.unsqueeze(0).expand(3, -1, -1) if mrope else positions


def step(kwargs: dict, prompt: PrunedPrompt, mrope: bool, site: object = None) -> "DecodeStep | None":
    """Rewrites the language model's keyword arguments in place for tokens that follow a pruned prompt. Returns a
    DecodeStep if the layers hold different numbers of tokens, else None.

    Raises PatchError when the caller's bookkeeping does not match what the cache has seen (a cropped cache, a
    conversation continued from it, a different batch size).
    """
    embeds, mask, first = kwargs["inputs_embeds"], kwargs.get("attention_mask"), prompt.segments[0]
    tokens = embeds.shape[1]
    if embeds.shape[0] != first.index.shape[0]:
        raise PatchError(
            f"a batch of {embeds.shape[0]} continues a pruned cache of {first.index.shape[0]} prompts; "
            "possible: the same prompts in the same order"
        )
    flat = mask is not None and not isinstance(mask, dict) and mask.ndim == 2
    if flat and mask.shape[1] != prompt.seen + tokens:
        raise PatchError(
            f"a mask of {mask.shape[1]} columns where this pruned cache has seen {prompt.seen} tokens and {tokens} "
            f"follow; possible: {prompt.seen + tokens} columns, of the whole conversation"
        )
    if mask is not None and not flat and tokens > 1:
        raise PatchError(
            f"{tokens} tokens with a ready-made mask, which counts the columns of another cache; possible: a 2-D mask "
            "over the whole conversation, or none"
        )
    if kwargs.get("position_ids") is None:
        kwargs["position_ids"] = unpruned_positions(prompt, tokens, mrope)
    elif mrope and prompt.seen == prompt.length:
        _count_from(prompt, kwargs["position_ids"][-3:, :, 0].amax(0))
    positions = kwargs["position_ids"]
    inside = DecodeStep(site, prompt, mask, positions, tokens) if len(prompt.segments) > 1 else None
    if first.shift is not None:
        kwargs["position_ids"] = positions - first.shift.unsqueeze(1)
    if not first.whole:
        if kwargs.get("cache_position") is not None:
            kwargs["cache_position"] = kwargs["cache_position"] - prompt.dropped
        cached = prompt.seen - prompt.dropped + tokens
        static = bool(getattr(kwargs["past_key_values"], "is_compileable", False))
        kwargs["attention_mask"] = cut_decode(
            mask, first.index, first.valid, prompt.length, cached, tokens, static, first.grown
        )
    prompt.seen += tokens
    return inside


def _count_from(prompt: PrunedPrompt, position: Tensor) -> None:
    """Notes the position [B] of the first token after the prompt, as the caller has it: in time a clip may reach beyond
    the text that follows it, and then generate() and forward() of transformers go on from different positions."""
    ahead = position.to(prompt.next_position.device) - prompt.next_position
    prompt.next_position = prompt.next_position + ahead
    moved = {id(segment.shift): segment.shift for segment in prompt.segments if segment.shift is not None}
    moved = {key: shift + ahead.to(shift.device) for key, shift in moved.items()}
    for segment in prompt.segments:
        segment.shift = moved.get(id(segment.shift))


class DecodeStep:
    """Decodes new tokens through layers that hold different numbers of prompt tokens.

    site: the model's layers. mask, positions: as the caller gave them, for the unpruned prompt. tokens: how many are
    new.
    """

    def __init__(self, site, prompt: PrunedPrompt, mask: object, positions: Tensor, tokens: int):
        self.site, self.prompt, self.mask, self.positions = site, prompt, mask, positions
        self.tokens, self.decoded = tokens, prompt.seen - prompt.length + tokens
        self.masks: dict[tuple[int, str], object] = {}
        self.flat: dict[int, object] = {}
        self.rotary: dict[int, tuple[Tensor, Tensor]] = {}

    def before_layer(self, layer: int, args: tuple, kwargs: dict):
        """Layer pre-hook: positions and mask of the segment that the layer belongs to."""
        segments = self.prompt.segments
        number = max(i for i, segment in enumerate(segments) if segment.first <= layer)
        if number == 0:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        layer_kwargs = {**kwargs, "position_embeddings": self._rotary(number, hidden, kwargs["position_embeddings"])}
        if kwargs.get("position_ids") is not None:
            layer_kwargs["position_ids"] = None
        if kwargs.get("cache_position") is not None:
            layer_kwargs["cache_position"] = kwargs["cache_position"] - (segments[0].width - segments[number].width)
        layer_kwargs["attention_mask"] = self._mask(number, layer, hidden, layer_kwargs)
        return args, layer_kwargs

    def _rotary(self, number: int, hidden: Tensor, first: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        shift = self.prompt.segments[number].shift
        if shift is self.prompt.segments[0].shift:
            return first
        if number not in self.rotary:
            positions = self.positions - shift.to(self.positions.device).unsqueeze(1)
            self.rotary[number] = self.site.rotary(hidden, positions if positions.ndim == 2 else positions[-3:])
        return self.rotary[number]

    def _mask(self, number: int, layer: int, hidden: Tensor, kwargs: dict):
        key = number, self.site.kinds[layer]
        if key not in self.masks:
            self.masks[key] = self._new_mask(number, layer, hidden, kwargs)
        return self.masks[key]

    def _new_mask(self, number: int, layer: int, hidden: Tensor, kwargs: dict):
        segment, cache = self.prompt.segments[number], kwargs.get("past_key_values")
        static, cached = bool(getattr(cache, "is_compileable", False)), segment.width + self.decoded
        if number not in self.flat:
            self.flat[number] = cut_decode(
                self.mask, segment.index, segment.valid, self.prompt.length, cached, self.tokens, static, segment.grown
            )
        flat = self.flat[number]
        if flat is None and self.tokens == 1 and not static and not self.site.sliding(layer):
            return None  # one token sees all that a growing cache holds
        return self.site.mask(layer, hidden, flat, cache, kwargs.get("cache_position"), segment.valid is not None)
