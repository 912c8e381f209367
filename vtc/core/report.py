"""The report of a patched call: the effect of the last prefill on each image, prompt and cache layer, and its cost."""

from dataclasses import dataclass, field
from typing import Any

from vtc.core.changes import LayerChange, in_words
from vtc.core.flops import ENCODER_FORMULA, PAPER_FORMULA, EncoderWork, LanguageShape, paper_flops
from vtc.core.image_report import ImageReport


@dataclass
class Report:
    """The effect of the last patched call with images.

    strategy: the resolved strategy. keep: its budget, None when its stages have budgets of their own. notes:
    departures on this model (such as the mean query in place of [CLS]). prompts_before, prompts_entered: real tokens
    of each prompt as given, and as they reach the first decoder layer. cache_lengths: see kv_lengths. observe_seconds,
    select_seconds: time of computing signals, and of selection with packing (on a GPU: of launching them, unless
    `vtc.engine.clock.exact` is on; selection inside the encoder is part of the encoder's own time); encoder: the
    work of each run of the encoder, none without a stage inside it; attention: the changes at prefill in each layer
    whose attention a stage may change; observe_inside, select_inside: the part of these seconds spent within the
    language model; earlier: the reports of the earlier turns with images on the same cache, not counted in this one;
    ahead: each look ahead at a layer's attention, as prompt, its tokens then, and the queries that it needed.
    """

    family: str
    strategy: dict[str, Any]
    keep: float | int | None
    notes: list[str]
    images: list[ImageReport]
    prompts_before: list[int]
    prompts_entered: list[int]
    shape: LanguageShape
    cache_lengths: list[Any] = field(default_factory=list, repr=False)
    observe_seconds: float = 0.0
    select_seconds: float = 0.0
    observe_inside: float = 0.0
    select_inside: float = 0.0
    encoder: list[EncoderWork] = field(default_factory=list, repr=False)
    attention: list[LayerChange] = field(default_factory=list, repr=False)
    earlier: tuple["Report", ...] = field(default=(), repr=False)
    ahead: list[tuple[int, int, int]] = field(default_factory=list, repr=False)

    @property
    def kv_lengths(self) -> list[int | None]:
        """Length of the KV cache in each layer after prefill, measured on the cache; None for a layer with linear
        attention, whose state has a fixed size. Empty without a cache."""
        return [None if length is None else int(length) for length in self.cache_lengths]

    @property
    def tokens_before(self) -> int:
        """Visual tokens of all images before pruning."""
        return sum(image.before for image in self.images)

    @property
    def tokens_after(self) -> int:
        """Visual tokens of all images that the last layer sees."""
        return sum(image.after for image in self.images)

    @property
    def average_tokens(self) -> float:
        """Visual tokens of all images that a layer of the language model sees on average."""
        return sum(sum(image.per_layer) for image in self.images) / self.shape.layers

    @property
    def average_share(self) -> float:
        """`average_tokens` as a share of all visual tokens: the quantity that `keep` sets."""
        return self.average_tokens / self.tokens_before

    @property
    def prompt_lengths(self) -> list[list[int]]:
        """Per prompt, the real tokens that each decoder layer sees."""
        lengths = []
        for prompt, entered in enumerate(self.prompts_entered):
            images = [image for image in self.images if image.prompt == prompt]
            text = entered - sum(image.entered for image in images)
            lengths.append([text + sum(image.per_layer[i] for image in images) for i in range(self.shape.layers)])
        return lengths

    @property
    def prompts_after(self) -> list[int]:
        """Real tokens of each prompt that the last layer sees."""
        return [lengths[-1] for lengths in self.prompt_lengths]

    def _unpruned(self) -> list[list[int]]:
        return [[n] * self.shape.layers for n in self.prompts_before]

    @property
    def prefill_flops(self) -> tuple[int, int]:
        """Language-model prefill FLOPs (before, after), summed over prompts; see `LanguageShape.formula`."""
        cost = self.shape.prefill_flops
        return sum(map(cost, self._unpruned())), sum(map(cost, self.prompt_lengths)) + self.ahead_flops()

    @property
    def encoder_flops(self) -> tuple[int, int] | None:
        """FLOPs of the vision encoder (before, after) on images and clips, where a stage acts inside it, else None; see
        `vtc.core.flops.ENCODER_FORMULA`."""
        before, after = (sum(work.flops[side] for work in self.encoder) for side in (0, 1))
        return (before, after) if self.encoder else None

    @property
    def paper_flops(self) -> tuple[int, int]:
        """FLOPs (before, after) as counted in the papers, for visual tokens alone, summed over images; see
        `vtc.core.flops.PAPER_FORMULA`."""
        before = sum(paper_flops(self.shape, [image.before] * image.layers) for image in self.images)
        return before, sum(paper_flops(self.shape, image.per_layer) for image in self.images)

    @property
    def kv_bytes(self) -> tuple[int, int]:
        """Bytes of the prompts' KV cache (before, after), not counting padding."""
        cost = self.shape.kv_bytes
        return sum(map(cost, self._unpruned())), sum(map(cost, self.prompt_lengths))

    def ahead_flops(self, prompt: int | None = None) -> int:
        """FLOPs of looking ahead, of one prompt or all; part of `prefill_flops`."""
        cost = self.shape.ahead_flops
        return sum(cost(tokens, queries) for b, tokens, queries in self.ahead if prompt in (None, b))

    def looked_ahead(self, tokens: list[int], queries: list[int]) -> None:
        """Adds a look ahead, by prompt; those without images would need none."""
        self.ahead += [(b, tokens[b], queries[b]) for b in sorted({image.prompt for image in self.images})]

    def spent_inside(self, observe: float = 0.0, select: float = 0.0) -> None:
        """Adds seconds that were spent within the language model."""
        self.observe_seconds, self.observe_inside = self.observe_seconds + observe, self.observe_inside + observe
        self.select_seconds, self.select_inside = self.select_seconds + select, self.select_inside + select

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        flops, paper, kv, vision = self.prefill_flops, self.paper_flops, self.kv_bytes, self.encoder_flops
        inside = {} if vision is None else {"before": vision[0], "after": vision[1], "formula": ENCODER_FORMULA}
        return {
            "family": self.family,
            "strategy": self.strategy,
            "asked": self.keep,
            "achieved": self.average_share,
            "notes": self.notes,
            "tokens": {"before": self.tokens_before, "after": self.tokens_after, "average": self.average_tokens},
            "images": [
                {
                    "prompt": i.prompt,
                    "image": i.image,
                    "before": i.before,
                    "after": i.after,
                    "stages": [step.to_dict() | i.flow_dict(s) for s, step in enumerate(i.steps)],
                    "kept": i.kept.tolist(),
                    **({"kind": "clip", "frames": i.frames, "per_frame": i.per_frame} if i.frames else {}),
                }
                for i in self.images
            ],
            "prompts": {"before": self.prompts_before, "after": self.prompts_after, "per_layer": self.prompt_lengths},
            "kv_lengths": self.kv_lengths,
            "prefill_flops": {"before": flops[0], "after": flops[1], "formula": self.shape.formula},
            "paper_flops": {"before": paper[0], "after": paper[1], "formula": PAPER_FORMULA},
            **({"encoder_flops": inside} if inside else {}),
            **({"attention": [change.to_dict() for change in self.attention]} if self.attention else {}),
            "kv_bytes": {"before": kv[0], "after": kv[1], "saved": kv[0] - kv[1]},
            "seconds": {"observe": self.observe_seconds, "select": self.select_seconds},
            **({"earlier": [turn.to_dict() for turn in self.earlier]} if self.earlier else {}),
        }

    def __str__(self) -> str:
        flops, paper, kv, vision = self.prefill_flops, self.paper_flops, self.kv_bytes, self.encoder_flops
        methods = "+".join(stage["method"] for stage in self.strategy["stages"])
        budget = "the stages' own budgets" if self.keep is None else f"keep={self.keep} asked"
        width = max((len(step.where) for image in self.images for step in image.steps), default=5)
        lines = [
            f"vtc report: {methods} on {self.family}, {budget}, {self.average_share:.4f} of the visual tokens kept "
            "(mean over layers)",
            f"prompt  image  {'stage'.ljust(width)}  tokens before  after",
        ]
        for i in self.images:
            lines += [
                f"{i.prompt:>6}  {i.image:>5}  {s.where.ljust(width)}  {s.before:>13}  {s.after:>5}" for s in i.steps
            ]
        lines += [f"clip {i.image} of prompt {i.prompt}".ljust(22) + i.frames_in_words for i in self.images if i.frames]
        lines += [
            f"visual tokens         {self.tokens_before} -> {self.average_tokens:.1f} in the average layer, "
            f"{self.tokens_after} in the last",
            f"prompt length         {self.prompts_before} -> {self.prompts_after}",
            f"KV cache per layer    {self._kv()}",
            *(
                [f"encoder FLOPs         {vision[0]:.4g} -> {vision[1]:.4g} ({vision[1] / vision[0]:.1%})"]
                if vision
                else []
            ),
            f"prefill FLOPs         {flops[0]:.4g} -> {flops[1]:.4g} ({flops[1] / flops[0]:.1%})",
            f"  as papers count     {paper[0]:.4g} -> {paper[1]:.4g} ({paper[1] / paper[0]:.1%}), visual tokens alone",
            *([f"attention changed     {in_words(self.attention)}"] if self.attention else []),
            f"KV bytes saved        {kv[0] - kv[1]:,} of {kv[0]:,}",
            *[
                f"turn {number} had           {turn.tokens_before} -> {turn.tokens_after} visual tokens"
                for number, turn in enumerate(self.earlier, 1)
            ],
            *[f"note                  {note}" for note in self.notes],
        ]
        return "\n".join(lines)

    def _kv(self) -> str:
        if not self.cache_lengths:
            return "no cache in use"
        lengths = [length for length in self.kv_lengths if length is not None]
        linear = len(self.cache_lengths) - len(lengths)
        softmax = f"{lengths[0]} in all {len(lengths)} layers" if len(set(lengths)) == 1 else str(lengths)
        return f"{softmax} with softmax attention, a fixed state in the other {linear}" if linear else softmax
