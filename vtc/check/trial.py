"""One strategy on the tiny model of one family, run with a record of what its stages were given and what they chose."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from vtc.check.batch import IMAGES, Words, forward, split
from vtc.config.resolve import resolve
from vtc.config.strategy import StageConfig, StrategyConfig
from vtc.core.errors import ConfigError, UnsupportedError
from vtc.core.layout import ImageLayout
from vtc.core.report import Report
from vtc.core.selection import Selection
from vtc.core.signals import Context, TextRelevance
from vtc.engine.patch import Patch
from vtc.patches import FAMILIES, available
from vtc.patching import current, find_family, patched, report
from vtc.strategies.base import Stage

KEEP, TOKENS = 0.3, 7
"""The share of the visual tokens with which strategies at the projector are tried, and the number."""


@dataclass
class Choice:
    """One call of a stage. part: the Encoder or Decoder that it was given beside the context."""

    stage: StageConfig
    context: Context
    part: object
    selection: Selection


@dataclass
class CheckedCall:
    """One patched call. output: the model's; choices: of its stages, in order; patch: what was on the model."""

    output: object
    report: Report
    choices: list[Choice] = field(repr=False)
    patch: Patch = field(repr=False)

    def kept(self, prompt: int) -> list[Tensor]:
        """What each step kept of each image of a prompt, in order."""
        return [step.kept for image in self.report.images if image.prompt == prompt for step in image.steps]


class Tiny:
    """The tiny model of a family, or another one in its place. Raises UnsupportedError or ConfigError where it is not
    of this family."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float64, model: nn.Module | None = None):
        self.name, self.dtype = name, dtype
        if not available(name):
            raise UnsupportedError(
                f"{name} is in transformers {FAMILIES[name].since} and later; possible: a newer version of it"
            )
        self.model = FAMILIES[name].tiny().to(dtype).eval() if model is None else model
        self.family = find_family(self.model)
        if self.family.name != name:
            actual = self.family.name
            raise ConfigError(f"tiny() of {name!r} gives a model of family {actual!r}; possible: one of {name!r}")
        # transformers leaves hooks for hidden states on a model when they are first asked for
        forward(self.model, self.inputs((1,)), output_hidden_states=True)
        self._by_dtype: dict[torch.dtype, Tiny] = {}

    def of(self, dtype: torch.dtype) -> "Tiny":
        """The same with weights and inputs of another type."""
        if dtype not in self._by_dtype:
            self._by_dtype[dtype] = Tiny(self.name, dtype)
        return self._by_dtype[dtype]

    def inputs(self, images: tuple[int, ...] = IMAGES, clips: bool = False) -> dict:
        """A batch with so many images, or clips, in each prompt, padded on the left."""
        family = type(self.family)
        inputs = (
            family.tiny_clips(self.model, tuple("c" * n for n in images))
            if clips
            else family.tiny_inputs(self.model, images)
        )
        return {k: v.to(self.dtype) if v.is_floating_point() else v for k, v in inputs.items()}

    def singles(self, inputs: dict, images: tuple[int, ...] = IMAGES) -> list[dict]:
        """The prompts of a batch one by one, without padding."""
        names = {argument: name for name, argument in (self.family.video or {}).items() if name in inputs}
        return split(inputs, images, names.get(self.family.sizes, self.family.sizes), self.family.image_token_id)

    def layouts(self, inputs: dict, images: tuple[int, ...] = IMAGES) -> list[list[ImageLayout]]:
        """The layout of each image of each prompt."""
        clips = {name: inputs[given] for given, name in (self.family.video or {}).items() if given in inputs}
        layouts = iter(self.family.clip_layouts(clips) if clips else self.family.layouts(inputs))
        return [[next(layouts) for _ in range(count)] for count in images]

    @cached_property
    def clip(self) -> tuple | None:
        """A CLIP model with random weights around the vision tower's sizes and its tokenizer; None where
        that is not CLIP's."""
        if not self.family.has_clip():
            return None
        from transformers import CLIPConfig, CLIPModel, CLIPTextConfig

        text = CLIPTextConfig(
            vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=77,
        ).to_dict()  # fmt: skip
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            model = CLIPModel(CLIPConfig(text, self.family.tower.config.to_dict(), projection_dim=16))
        return model.to(self.dtype).eval(), Words()


def tells_frames(stage: Stage) -> bool:
    """Whether a stage at the projector is made for clips: it keeps a part of each frame, or compares frames."""
    return stage.clips or stage.least(2, 2) > 1


class Trial:
    """A strategy on a tiny model. given: overrides of the strategy, as `vtc.patch` takes them.

    A method made for clips is tried on clips where the family takes any, all others are tried on images.

    Without a budget in `given`, a strategy at the projector alone keeps KEEP of the tokens, any other keeps what its
    file or its published schedule says. Raises ConfigError or UnsupportedError where the two do not go together.
    """

    def __init__(self, strategy: object, tiny: Tiny, given: dict):
        self.strategy, self.tiny, self.model = strategy, tiny, tiny.model
        self.has_budget = bool({"keep", "prune_ratio"} & set(given))
        self.given = given if self.has_budget else _with_budget(strategy, tiny.name, given)
        self.config = self.resolved()
        projector = self.config.projector
        clips = tiny.family.video is not None and projector is not None and tells_frames(projector.stage)
        self.kind = "video" if clips else "image"
        self.inputs = tiny.inputs(clips=clips)

    def resolved(self, **changes) -> StrategyConfig:
        """The strategy with other overrides on top."""
        return resolve(self.strategy, self.tiny.name, **self.options(**changes))

    def options(self, **changes) -> dict:
        """The overrides with some changed; another budget replaces the present one."""
        given = {k: v for k, v in self.given.items() if "keep" not in changes or k not in ("keep", "prune_ratio")}
        return {**given, **changes}

    @contextmanager
    def on(self, **changes) -> Iterator[nn.Module]:
        """The model patched, in a with-block."""
        projector = self.config.projector
        needs = () if projector is None else projector.stage.needs(self.tiny.family.encoder)
        clip = self.tiny.clip if any(isinstance(signal, TextRelevance) for signal in needs) else None
        options = self.options(**changes)
        with patched(self.model, self.strategy, processor=Words(), clip=clip, **options) as model:
            yield model

    def run(self, inputs: dict | None = None, **changes) -> CheckedCall:
        """One prefill with a cache."""
        with self.on(**changes):
            choices = watch(self.model)
            output = forward(self.model, self.inputs if inputs is None else inputs, use_cache=True)
            return CheckedCall(output, report(self.model), choices, current(self.model))


def _with_budget(strategy: object, family: str, given: dict) -> dict:
    try:
        config = resolve(strategy, family, **given)
    except ConfigError:  # it names no budget, or cannot be had with any
        config = None
    return given if config is not None and (config.decoder or config.attention) else {**given, "keep": KEEP}


def watch(model: nn.Module, replayed: list[Selection] | None = None) -> list[Choice]:
    """Has every stage of a patched model note its calls in the list that is returned, until the patch is gone.

    replayed: what the stages choose, call by call, instead of choosing for themselves.
    """
    noted, remaining = [], None if replayed is None else iter(replayed)

    def noting(stage: StageConfig, select: Callable) -> Callable:
        def noted_select(context: Context, part: object) -> Selection:
            selection = select(context, part) if remaining is None else next(remaining)
            noted.append(Choice(stage, context, part, selection))
            return selection

        return noted_select

    for stage in (s for s in current(model).strategy.stages if s.stage.site != "attention"):
        object.__setattr__(stage.stage, "select", noting(stage, stage.stage.select))
    return noted
