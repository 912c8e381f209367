"""The signals of stages inside the language model: measured while layers run, or computed ahead of a layer."""

import torch
from torch import Tensor

from vtc.config.hybrid import is_ahead
from vtc.core.errors import PatchError
from vtc.core.hooks import Stop
from vtc.core.signals import (
    DecoderAttention,
    DecoderKeys,
    FinalHidden,
    Hidden,
    ImageAttention,
    Importance,
    KeyNorms,
    Signal,
    TextInformation,
    TextPivots,
    TextToVisual,
    Transition,
    UnturnedAttention,
    ValueNorms,
)
from vtc.engine.ranks import WHOLE, Ranks
from vtc.engine.received import Rows, information, received, unturned
from vtc.kernels.attention_reduce import attention_rows
from vtc.kernels.raters import rater_scores, raters
from vtc.kernels.topk import topk_sorted
from vtc.kernels.transition import transition_variation

RATERS = "raters"


class Needs:
    """Which layers have to be watched for the drops of a plan, given the signals of each drop.

    modules: layers whose modules are measured. attention: layers whose attention exposes its queries and keys.
    running: signals that are computed while the attention runs. raters: whether any signal is the attention of raters.
    scores: whether any signal is the scores of the stage at the projector. held: layers whose keys and values are held
    until the next drop, because the signals cover the tokens that each image has left then.
    """

    def __init__(self, needs: list[tuple[Signal, ...]]):
        signals = dict.fromkeys(signal for drop_signals in needs for signal in drop_signals)
        norms = [KeyNorms(s.layer) for s in signals if isinstance(s, TextPivots)]
        signals = list(dict.fromkeys([*signals, *norms]))
        self.modules = sorted({s.layer for s in signals if isinstance(s, Transition)})
        measured = KeyNorms, TextInformation, TextToVisual, UnturnedAttention
        revealing = (*measured, DecoderAttention, DecoderKeys, ImageAttention, ValueNorms)
        self.held = {s.layer for s in signals if isinstance(s, (ImageAttention, ValueNorms))}
        self.attention = sorted({s.layer for s in signals if isinstance(s, revealing)})
        self.unturned = [s for s in signals if isinstance(s, UnturnedAttention)]
        self.raters = any(isinstance(s, DecoderAttention) and s.queries == "raters" for s in signals)
        self.raters = self.raters or bool(self.unturned)
        self.scores = Importance() in signals
        self.running = [
            s for s in signals if isinstance(s, measured) or isinstance(s, DecoderAttention) and not s.ahead
        ]


class Watch:
    """The signals of one prefill. seen: the values measured for every column [B, S], carried through the drops. ranks:
    over which the heads of the layers are split."""

    def __init__(self, needs: Needs, site, images: int, ranks: Ranks = WHOLE):
        self.needs, self.site, self.images, self.ranks = needs, site, images, ranks
        self.seen: dict[object, Tensor] = {}
        self.held: dict[int, tuple[Tensor, ...]] = {}
        self.probing, self.probed, self.own_keys, self.final, self.hidden = False, None, None, None, None

    def enter(self, embeds: Tensor, rows: Rows, columns: list[list[Tensor]]) -> None:
        """Computes the signals of the language model's input [B, S, D]. columns: of each prompt's images."""
        if self.needs.scores:
            scores = embeds.new_zeros(embeds.shape[:2], dtype=torch.promote_types(embeds.dtype, torch.float32))
            for b, images in enumerate(columns):
                for image_columns, kept in zip(images, rows.kept[b], strict=True):
                    scores[b, image_columns] = kept.score.to(scores)
            self.seen[Importance()] = scores
        if not self.needs.raters:
            return
        for ordinal in range(self.images):
            chosen = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
            for b, images in enumerate(columns):
                if ordinal < len(images):
                    text = rows.text_columns(b, ordinal)
                    text = text if len(text) else text.new_full((1,), rows.ends[b] - 1)
                    chosen[b, text] = raters(rater_scores(embeds[b, images[ordinal]], embeds[b, text]))
            self.seen[RATERS, ordinal] = chosen

    def measure(self, layer: int, x: Tensor, y: Tensor, valid: Tensor | None) -> None:
        """Adds one module's contribution to the transition signal of a layer."""
        variation, signal = transition_variation(x, y, valid), Transition(layer)
        self.seen[signal] = variation if signal not in self.seen else self.seen[signal] + variation

    def attention(
        self, layer: int, query: Tensor, key: Tensor, scale: float | None, rows: Rows, value: Tensor | None = None,
        turns: tuple[Tensor, Tensor] | None = None,
    ) -> None:  # fmt: skip
        """Takes the queries and keys of a layer that is probed ahead (and stops it), or reduces the attention of a
        running layer to the signals computed from it."""
        if self.probing:
            self.probed = query, key, scale
            raise Stop
        ranks, stop = self.ranks.holding(query.shape[1]), rows.before + query.shape[2]
        key, own = key[:, :, :stop], key[:, :, rows.before : stop]  # a static cache returns its whole buffer
        if layer in self.needs.held:
            value = value[:, :, rows.before : stop]
            every, last = torch.arange(len(query)), [end - 1 for end in rows.ends]
            self.held[layer] = query[every, :, last], value[every, :, last], own, value
        for signal in self.needs.running:
            if signal.layer != layer:
                continue
            if isinstance(signal, KeyNorms):
                dtype = torch.promote_types(own.dtype, torch.float32)
                self.seen[signal] = ranks.total(torch.linalg.vector_norm(own, 1, dim=(1, 3), dtype=dtype))
                continue
            if isinstance(signal, TextInformation):
                for ordinal in range(self.images):
                    self.seen[signal, ordinal] = information(query, key, scale, rows, ordinal, ranks)
                continue
            if isinstance(signal, UnturnedAttention):
                for ordinal in range(self.images):
                    chosen = self.seen[RATERS, ordinal]
                    scores = unturned(query, key, scale, rows, ordinal, chosen, turns, signal.heads, ranks)
                    self.seen[signal, ordinal] = scores
                continue
            queries = "after" if isinstance(signal, TextToVisual) else signal.queries
            for ordinal in range(self.images):
                chosen = self.seen.get((RATERS, ordinal))
                self.seen[signal, ordinal] = ranks.mean(received(query, key, scale, rows, queries, ordinal, chosen))

    def look_ahead(
        self, needs: tuple[Signal, ...], layer: int, hidden: Tensor, rotary, rows: Rows, held=None
    ) -> list[int] | None:  # fmt: skip
        """Computes what these signals need from a layer before it runs on hidden [B, S, D]. held(): the keys that it
        holds from earlier turns, None in a first one. Returns how many queries each prompt needed, None where the layer
        was not looked at."""
        self.probed = self.final = queries = None
        self.hidden = hidden
        if any(map(is_ahead, needs)):
            self.probing, firsts = True, rows.first_queries(needs)
            queries = [end - first for end, first in zip(rows.ends, firsts, strict=True)]
            first = min(rows.width - 1, *firsts)
            try:
                self.site.run_up_to_attention(layer, hidden, rotary, first)
            finally:
                self.probing = False
            self.own_keys = self.probed[1]
            if held is not None:
                query, key, scale = self.probed
                self.probed = query, torch.cat([held().to(key), key], 2), scale
        if any(isinstance(s, (FinalHidden, TextPivots)) for s in needs):
            self.final = self.site.final_norm(hidden)
        return queries

    def look(self, signal: Signal, b: int, ordinal: int, columns: Tensor, rows: Rows) -> Tensor:
        """One signal of one image: its columns [n] of prompt b; shapes as in `vtc.core.signals`, without [B]."""
        if isinstance(signal, (Hidden, FinalHidden)):
            return (self.hidden if isinstance(signal, Hidden) else self.final)[b, columns]
        if isinstance(signal, DecoderKeys):
            ranks, key = self.ranks.holding(self.probed[0].shape[1]), self.own_keys[b]
            return ranks.mean(key.mean(0, dtype=torch.promote_types(key.dtype, torch.float32))[columns])
        if isinstance(signal, TextPivots):
            return self.final[b, self._pivots(signal, b, ordinal, rows)]
        if isinstance(signal, (ImageAttention, ValueNorms)) and signal.layer in self.held:
            return self._from_held(signal, b, columns)
        key = signal if isinstance(signal, (Transition, KeyNorms, Importance)) else (signal, ordinal)
        if isinstance(signal, DecoderAttention) and signal.ahead and key not in self.seen:
            chosen = self.seen.get((RATERS, ordinal))
            ranks = self.ranks.holding(self.probed[0].shape[1])
            self.seen[key] = ranks.mean(received(*self.probed, rows, signal.queries, ordinal, chosen))
        if key not in self.seen:
            raise PatchError(f"the signal {signal} was not seen; the decoder layer that it reads did not run")
        if isinstance(signal, TextInformation):
            return self._information(signal, ordinal)[b]
        values = self.seen[key][b].to(columns.device)
        if isinstance(signal, TextToVisual):
            return values.masked_fill(~rows.visual(b), 0).sum()
        return values[columns]

    def _information(self, signal: TextInformation, ordinal: int) -> Tensor:
        """[B, 2], on the host if the signal is to be read; all images' at once."""
        if signal.read and self.seen[signal, 0].device.type != "cpu":
            every = torch.stack([self.seen[signal, image] for image in range(self.images)]).cpu()
            self.seen.update({(signal, image): own for image, own in enumerate(every)})
        return self.seen[signal, ordinal]

    def _from_held(self, signal: ImageAttention | ValueNorms, b: int, columns: Tensor) -> Tensor:
        """A signal [n] of the columns of one image of prompt b, from the keys and values of a layer."""
        last_query, last_value, key, value = self.held[signal.layer]
        columns, ranks = columns.to(value.device), self.ranks.holding(last_query.shape[1])
        if isinstance(signal, ValueNorms):
            image_values = value[b][:, columns]
            mean = image_values.mean(0, dtype=torch.promote_types(image_values.dtype, torch.float32))
            return ranks.mean(mean).abs().sum(-1)
        rows, targets = (last_value, value) if signal.values else (last_query, key)
        return ranks.mean(attention_rows(rows[b : b + 1, :, None], targets[b : b + 1, :, columns])[0, 0])

    def _pivots(self, signal: TextPivots, b: int, ordinal: int, rows: Rows) -> Tensor:
        """Columns of the text tokens after an image with the longest keys, longest first."""
        columns = rows.text_columns(b, ordinal)
        norms = self.seen[KeyNorms(signal.layer)][b].to(columns.device)[columns]
        best = topk_sorted(norms.unsqueeze(0), min(signal.count, len(columns)))[0]
        return columns[best[norms[best].sort(descending=True, stable=True).indices]]

    def gather(self, local: Tensor) -> None:
        """Gathers the measured values at the remaining columns `local` [B, K]. What was computed ahead refers to the
        tokens before the drop, and is discarded."""
        carried = {key: x for key, x in self.seen.items() if not (isinstance(key, tuple) and is_ahead(key[0]))}
        fixed = {key: x for key, x in carried.items() if isinstance(key, tuple) and isinstance(key[0], TextInformation)}
        self.seen = {key: x.to(local.device).gather(1, local) for key, x in carried.items() if key not in fixed} | fixed
        self.probed = self.own_keys = self.final = self.hidden = None
        for layer, (last_query, last_value, *key_value) in self.held.items():
            index = local[:, None, :, None]
            key_value = [x.gather(2, index.to(x.device).expand(-1, x.shape[1], -1, x.shape[3])) for x in key_value]
            self.held[layer] = last_query, last_value, *key_value
