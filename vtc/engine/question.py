"""The question of a prompt, for methods that select by it: as token embeddings, or compared in CLIP's space."""

from collections.abc import Callable

import torch
from torch import Tensor

from vtc.config.strategy import StrategyConfig
from vtc.core.errors import ConfigError, UnsupportedError
from vtc.core.signals import ClipPatches, ClipWords, Signal, TextEmbeddings, TextRelevance
from vtc.core.text import keywords_of, question_of, without_instructions
from vtc.engine.placement import Host
from vtc.kernels.transfer import upload

SEGMENT = 77  # tokens of one pass of CLIP's text tower


class QuestionReader:
    """Reads the questions of a batch. Raises ConfigError or UnsupportedError if something a strategy needs is missing.

    processor: has a `tokenizer`, or is one. clip: (CLIPModel, its tokenizer) or None.
    """

    def __init__(self, family, strategy: StrategyConfig, processor: object, clip: object):
        self.family, self.clip = family, clip
        self.tokenizer = getattr(processor, "tokenizer", processor)
        for stage in strategy.stages:
            if stage.stage.needs_text and not callable(getattr(self.tokenizer, "decode", None)):
                raise ConfigError(
                    f"{stage.method} reads the question, and processor={processor!r} has no tokenizer; possible: "
                    f"vtc.patch(model, {strategy.name!r}, processor=AutoProcessor.from_pretrained(...))"
                )
        compares = strategy.projector is not None and any(
            isinstance(s, (TextRelevance, ClipWords)) for s in strategy.projector.stage.needs(family.encoder)
        )
        if compares:
            self._check_clip()

    def _check_clip(self) -> None:
        if not self.family.has_clip():
            raise UnsupportedError(
                f"{self.family.name} with this encoder has no CLIP text tower to go with it; possible: "
                "relevance=embeddings"
            )
        parts = self.clip if isinstance(self.clip, tuple) and len(self.clip) == 2 else (None, None)
        if not all(hasattr(parts[0], name) for name in ("visual_projection", "get_text_features")) or parts[1] is None:
            raise ConfigError(
                f"clip={type(self.clip).__name__} cannot compare text and pictures; possible: clip=(CLIPModel, its "
                "tokenizer) of the model's own vision tower, or relevance=embeddings"
            )

    def look(self, signal: Signal, b: int, host: Host):
        """A signal of the question of prompt b: [m, D], or for TextRelevance and ClipPatches a function from the
        encoder's features [N, D] to the signal."""
        if isinstance(signal, ClipPatches):
            return self._patches
        if host.ids is None:
            raise UnsupportedError("the question cannot be read from inputs_embeds; possible: input_ids")
        row, stays = host.ids[b], host.stays(b)
        if isinstance(signal, TextRelevance):
            return self._relevance(without_instructions(self._question(row[stays])))
        if isinstance(signal, ClipWords):
            return self._words(self._question(row[stays]))
        return self._embeddings(signal, row, stays, host.is_image[b])

    def _question(self, ids: Tensor) -> str:
        return question_of(self.tokenizer.decode(ids.tolist(), skip_special_tokens=False))

    def _embeddings(self, signal: TextEmbeddings, row: Tensor, stays: Tensor, is_image: Tensor) -> Tensor:
        table = self.family.inner.get_input_embeddings()
        if self.tokenizer is None:
            after = stays.clone()
            after[: int(is_image.nonzero()[-1]) + 1] = False
            ids = row[after if bool(after.any()) else stays]
        else:
            words = signal.prefix + self._question(row[stays])
            words = (keywords_of(words) if signal.keywords else words).split()
            word_ids = self.tokenizer(words, is_split_into_words=True, add_special_tokens=False)["input_ids"]
            ids = torch.tensor(word_ids or row[stays].tolist(), dtype=torch.long)
        return table(upload(ids, table.weight.device)).detach()

    def _patches(self, features: Tensor) -> Tensor:
        projection = self.clip[0].visual_projection
        return projection(features.to(projection.weight.device, projection.weight.dtype)).to(features.device)

    def _words(self, question: str) -> Tensor:
        model, tokenizer = self.clip
        ids = tokenizer(question)["input_ids"]
        ids = ids if len(ids) <= SEGMENT else [*ids[: SEGMENT - 1], ids[-1]]
        ids = upload(torch.tensor([ids], dtype=torch.long), model.text_projection.weight.device)
        return model.text_projection(model.text_model(input_ids=ids).last_hidden_state[0])

    def _relevance(self, question: str) -> Callable[[Tensor], Tensor]:
        model, tokenizer = self.clip
        ids = torch.tensor(tokenizer(question)["input_ids"], dtype=torch.long)
        segments = -(-len(ids) // SEGMENT)
        padded = torch.zeros(segments * SEGMENT, dtype=torch.long)
        mask = torch.zeros_like(padded)
        padded[: len(ids)], mask[: len(ids)] = ids, 1
        device = model.visual_projection.weight.device
        text = model.get_text_features(
            input_ids=upload(padded.view(segments, SEGMENT), device),
            attention_mask=upload(mask.view(segments, SEGMENT), device),
        )
        text = text if isinstance(text, Tensor) else text.pooler_output

        def relevance(features: Tensor) -> Tensor:
            tower = self.family.tower
            norm = getattr(tower, "vision_model", tower).post_layernorm
            projected = model.visual_projection(norm(features).to(device, model.visual_projection.weight.dtype))
            unit, words = (torch.nn.functional.normalize(x.float(), dim=-1) for x in (projected, text))
            return (unit @ words.T).mean(1).to(features.device)

        return relevance
