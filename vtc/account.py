"""The proof of a patch: what the last prefill did to every image, prompt, cache layer and to the cost."""

from dataclasses import dataclass, field

from torch import Tensor

from vtc.flops import FORMULA, LanguageShape


@dataclass
class ImageReport:
    """One image of one prompt. before, after: its visual tokens in the prompt; stages: (method, before, after) in
    order; kept: places [after] of the survivors in the image's own run of tokens."""

    prompt: int
    image: int
    before: int
    after: int
    stages: list[tuple[str, int, int]]
    kept: Tensor = field(repr=False)


@dataclass
class Report:
    """What the last patched call with images did.

    strategy: the resolved strategy. notes: departures that this model brings (such as the mean query for [CLS]).
    prompts_before, prompts_after: real tokens of each prompt. cache_lengths: see kv_lengths. observe_seconds,
    select_seconds: time of the attention reductions and of selection with packing (on a GPU: of launching, unless
    `vtc.engine.clock.exact` is on).
    """

    family: str
    strategy: dict
    keep: float | int
    notes: list[str]
    images: list[ImageReport]
    prompts_before: list[int]
    prompts_after: list[int]
    shape: LanguageShape
    cache_lengths: list = field(default_factory=list, repr=False)
    observe_seconds: float = 0.0
    select_seconds: float = 0.0

    @property
    def kv_lengths(self) -> list[int]:
        """Columns of the KV cache per layer after prefill, measured on the cache; empty without one."""
        return [int(length) for length in self.cache_lengths]

    @property
    def tokens_before(self) -> int:
        """Visual tokens of all images before."""
        return sum(image.before for image in self.images)

    @property
    def tokens_after(self) -> int:
        """Visual tokens of all images after."""
        return sum(image.after for image in self.images)

    def _cost(self, lengths: list[int], cost) -> int:
        return sum(cost([n] * self.shape.layers) for n in lengths)

    @property
    def prefill_flops(self) -> tuple[int, int]:
        """Language-model prefill FLOPs (before, after), summed over prompts; see `vtc.flops.FORMULA`."""
        return (
            self._cost(self.prompts_before, self.shape.prefill_flops),
            self._cost(self.prompts_after, self.shape.prefill_flops),
        )

    @property
    def kv_bytes(self) -> tuple[int, int]:
        """Bytes of the prompts' KV cache (before, after), padding not counted."""
        return self._cost(self.prompts_before, self.shape.kv_bytes), self._cost(self.prompts_after, self.shape.kv_bytes)

    def to_dict(self) -> dict:
        """Everything as plain data."""
        flops, kv = self.prefill_flops, self.kv_bytes
        return {
            "family": self.family,
            "strategy": self.strategy,
            "asked": self.keep,
            "achieved": self.tokens_after / self.tokens_before,
            "notes": self.notes,
            "tokens": {"before": self.tokens_before, "after": self.tokens_after},
            "images": [
                {
                    "prompt": i.prompt,
                    "image": i.image,
                    "before": i.before,
                    "after": i.after,
                    "stages": [{"stage": s, "before": b, "after": a} for s, b, a in i.stages],
                    "kept": i.kept.tolist(),
                }
                for i in self.images
            ],
            "prompts": {"before": self.prompts_before, "after": self.prompts_after},
            "kv_lengths": self.kv_lengths,
            "prefill_flops": {"before": flops[0], "after": flops[1], "formula": FORMULA},
            "kv_bytes": {"before": kv[0], "after": kv[1], "saved": kv[0] - kv[1]},
            "seconds": {"observe": self.observe_seconds, "select": self.select_seconds},
        }

    def __str__(self) -> str:
        flops, kv = self.prefill_flops, self.kv_bytes
        method = self.strategy["stages"][0]["method"]
        lines = [
            f"vtc report: {method} on {self.family}, keep={self.keep} asked, "
            f"{self.tokens_after / self.tokens_before:.4f} of the visual tokens kept",
            "prompt  image  stage        tokens before  after",
        ]
        for i in self.images:
            for stage, before, after in i.stages:
                lines.append(f"{i.prompt:>6}  {i.image:>5}  {stage:<11}  {before:>13}  {after:>5}")
        lines += [
            f"prompt length         {self.prompts_before} -> {self.prompts_after}",
            f"KV cache per layer    {self._kv()}",
            f"prefill FLOPs         {flops[0]:.4g} -> {flops[1]:.4g} ({flops[1] / flops[0]:.1%})",
            f"KV bytes saved        {kv[0] - kv[1]:,} of {kv[0]:,}",
            *[f"note                  {note}" for note in self.notes],
        ]
        return "\n".join(lines)

    def _kv(self) -> str:
        if not self.cache_lengths:
            return "no cache in use"
        lengths = self.kv_lengths
        return f"{lengths[0]} in all {len(lengths)} layers" if len(set(lengths)) == 1 else str(lengths)
