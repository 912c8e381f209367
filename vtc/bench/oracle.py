"""The oracle of a strategy: the same unpatched model, fed the tokens that the strategy chose when it ran once.

It shows what the strategy would gain if choosing and bookkeeping were free. The vision encoder still runs in full. At
the projector, the prompt holds as many placeholders as tokens were kept, and `get_image_features` gives the chosen rows
(`get_video_features` those of a clip). Inside the language model, hooks before the recorded layers gather the recorded
columns; later layers get the rotary embeddings that they had in the recorded run. Where the language model adds
DeepStack planes after its first layers, it is given what was added in the recorded run.
"""

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vtc.core.hooks import Patchwork
from vtc.core.image_report import ImageReport
from vtc.core.report import Report

FEATURES = {"image": "get_image_features", "video": "get_video_features"}  # the second may call the first


class NoOracle(Exception):
    """This strategy has no oracle on this model; the text says why."""


@dataclass
class Recording:
    """What was recorded of one patched generate(). features [n, D]: of all images; embeds [B, S, D]: what
    entered the language model at prefill; positions, rotary: per forward, the position ids of the language model and
    the rotary embeddings of each of its layers; drops: per layer before which tokens were dropped at prefill, the
    hidden states before and after; planes: what the language model adds after its first layers [B, K, D]; logits
    [B, V]: of the first token; ids [B, T]: the generated tokens."""

    features: Tensor | None = None
    embeds: Tensor | None = None
    positions: list[Tensor | None] = field(default_factory=list)
    rotary: list[list[tuple[Tensor, Tensor]]] = field(default_factory=list)
    drops: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    planes: list[Tensor] = field(default_factory=list)
    report: Report | None = None
    logits: Tensor | None = None
    ids: Tensor | None = None


def record(family, run: Callable[[], object], get_report: Callable[[], Report]) -> Recording:
    """Runs a patched generate() once and records what the patch gives the model, which must be patched already."""
    recording, patchwork, last = Recording(), Patchwork(), None

    def entering(module: nn.Module, args: tuple, kwargs: dict) -> None:
        recording.positions.append(kwargs.get("position_ids"))
        recording.rotary.append([])
        if recording.embeds is None:
            recording.embeds = kwargs["inputs_embeds"]

    def layer(number: int, module: nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal last
        recording.rotary[-1].append(kwargs["position_embeddings"])
        hidden = args[0] if args else kwargs["hidden_states"]
        last = recording.embeds if number == 0 else last
        if len(recording.rotary) == 1 and hidden.shape != last.shape:
            recording.drops[number] = last, hidden

    def after_layer(module: nn.Module, args: tuple, kwargs: dict, output) -> None:
        nonlocal last
        last = output[0] if isinstance(output, tuple) else output

    def features(original: Callable) -> Callable:
        @functools.wraps(original)
        def get_features(*args, **kwargs):
            output = original(*args, **kwargs)
            recording.features = torch.cat(list(output.pooler_output))
            return output

        return get_features

    def adding(add: Callable, hidden: Tensor, *rows: Tensor) -> Tensor:
        nonlocal last
        last = add(hidden, *rows)
        recording.planes.append(last - hidden)
        return last

    for name in (FEATURES[kind] for kind in FEATURES if kind == "image" or family.video is not None):
        patchwork.attribute(family.inner, name, features(getattr(family.inner, name)))
    if family.planes_method is not None:
        add = getattr(family.language_model, family.planes_method)
        patchwork.attribute(family.language_model, family.planes_method, functools.partial(adding, add))
    patchwork.pre_hook(family.language_model, entering)
    for number, block in enumerate(family.language_model.layers):
        patchwork.pre_hook(block, functools.partial(layer, number))
        patchwork.post_hook(block, after_layer)
    try:
        output = run()
    finally:
        patchwork.undo()
    recording.report, recording.logits = get_report(), output.logits[0]
    recording.ids = output.sequences[:, -len(output.logits) :]
    return recording


def _entered(image: ImageReport) -> list[int]:
    """Places, in the image's own run, of the tokens that entered the language model, in the order of the sequence."""
    before = [step for step in image.steps if step.site != "decoder"]
    return before[-1].kept.tolist() if before else list(range(image.before))


class Oracle:
    """Built from a recording of a run on `inputs`. Its attribute `inputs` is what generate() takes within `fed()`.

    Raises NoOracle where the strategy's tokens cannot be fed to an unpatched model.
    """

    def __init__(self, family, inputs: dict[str, Tensor], recording: Recording):
        self.family, self.given = family, inputs
        self.device = inputs["input_ids"].device
        report = recording.report
        self.prompts = [[i for i in report.images if i.prompt == b] for b in range(len(inputs["input_ids"]))]
        kind = "video" if "pixel_values_videos" in inputs else "image"
        self.token, self.features = family.token_ids()[kind], FEATURES[kind]
        if report.attention:
            raise NoOracle(f"{report.attention[0].stage}, which changes attention")
        if any(s["positions"] == "keep" for s in self._stages(report) if s["site"]) and not family.mrope:
            raise NoOracle(f"positions=keep at the projector of {family.name}")
        self.inputs = self._shortened()
        is_image = self.inputs["input_ids"] == self.token
        self._choose(recording, is_image)
        self._place(recording)
        self._go_inside(recording, is_image.tolist())
        self.planes = recording.planes

    @staticmethod
    def _stages(report: Report) -> list[dict]:
        from vtc.strategies import METHODS

        shared = report.strategy.get("positions")
        return [
            {"positions": s.get("positions", shared), "site": METHODS[s["method"]].site != "decoder"}
            for s in report.strategy["stages"]
        ]

    def _shortened(self) -> dict[str, Tensor]:
        """The prompts with a placeholder for each token that entered the language model."""
        rows = []
        for b, row in enumerate(self.given["input_ids"].tolist()):
            entered = [(set(_entered(image)), image.before) for image in self.prompts[b]]
            stays = iter([place in places for places, before in entered for place in range(before)])
            rows.append([token for token in row if token != self.token or next(stays)])
        if len({len(row) for row in rows}) > 1:
            raise NoOracle("the prompts of one batch keep different numbers of tokens")
        ids = torch.tensor(rows, device=self.device)
        other = {k: v for k, v in self.given.items() if k not in ("input_ids", "attention_mask", "mm_token_type_ids")}
        return {**other, **self.family.prompt_inputs(ids)}

    def _choose(self, recording: Recording, is_image: Tensor) -> None:
        """Keeps row indices of the features where tokens were only dropped, and the features themselves where any were
        merged or dropped inside the encoder."""
        images = [image for prompt in self.prompts for image in prompt]
        if recording.embeds.shape[:2] != is_image.shape:
            raise NoOracle(f"{recording.embeds.shape[1]} tokens entered the language model, not {is_image.shape[1]}")
        rows = [torch.tensor(_entered(image), device=self.device) for image in images]
        entered = recording.embeds[is_image].split([len(index) for index in rows])
        features = recording.features.split([image.before for image in images])
        picked = [x.index_select(0, index) for x, index in zip(features, rows, strict=True)]
        inside = any(step.site == "encoder" for image in images for step in image.steps)
        same = not inside and all(torch.equal(a, b.to(a.dtype)) for a, b in zip(entered, picked, strict=True))
        self.rows = None if all(len(i) == image.before for i, image in zip(rows, images)) and same else rows
        self.merged = None if same else [x.clone() for x in entered]

    def _place(self, recording: Recording) -> None:
        """With M-RoPE: positions [3, B, S] of the prompt, and by how much later ones exceed the number of tokens."""
        self.positions = self.delta = None
        if self.family.mrope:
            if recording.positions[0] is None or len(recording.positions) < 2:
                raise NoOracle("the language model was given no positions")
            self.positions = recording.positions[0][-3:]
            self.delta = recording.positions[1][-3:, :, 0].amax(0).unsqueeze(1) - self.inputs["input_ids"].shape[1]

    def _go_inside(self, recording: Recording, is_image: list[list[bool]]) -> None:
        """Per layer before which tokens are dropped, the columns [B, K] that stay."""
        self.columns: dict[int, Tensor] = {}
        steps = [sorted({s.layer for i in prompt for s in i.steps if s.site == "decoder"}) for prompt in self.prompts]
        self.rotary, self.differs = recording.rotary, {}
        if not any(steps):
            return
        origins = [self._provenance(b, row) for b, row in enumerate(is_image)]
        for layer in sorted({layer for prompt_layers in steps for layer in prompt_layers}):
            chosen = []
            for b, prompt in enumerate(self.prompts):
                last = [[s for s in image.steps if s.site == "decoder" and s.layer == layer][-1:] for image in prompt]
                stays = [None if not step else set(step[0].kept.tolist()) for step in last]
                kept = [
                    c for c, at in enumerate(origins[b]) if at is None or stays[at[0]] is None or at[1] in stays[at[0]]
                ]
                chosen.append(kept)
                origins[b] = [origins[b][c] for c in kept]
            if len({len(kept) for kept in chosen}) > 1:
                raise NoOracle("the prompts of one batch keep different numbers of tokens")
            self.columns[layer] = torch.tensor(chosen, device=self.device)
            before, after = recording.drops.get(layer, (None, None))
            if before is not None and not torch.equal(_gathered(before, self.columns[layer]), after):
                raise NoOracle("tokens are merged or reordered inside the language model")
        for layer in range(min(self.columns), len(self.family.language_model.layers)):
            pairs = [(step[0][0], step[layer][0]) for step in self.rotary[1:]]
            self.differs[layer] = not all(a is b or torch.equal(a, b) for a, b in pairs)

    def _provenance(self, b: int, row: list[bool]) -> list[tuple[int, int] | None]:
        """The image of each column and the place in it, None for text."""
        places = iter([(j, offset) for j, image in enumerate(self.prompts[b]) for offset in _entered(image)])
        return [next(places) if visual else None for visual in row]

    @contextmanager
    def fed(self) -> Iterator[nn.Module]:
        """Within this context the unpatched model works on the chosen tokens; afterwards it is restored."""
        patchwork, inner = Patchwork(), self.family.inner
        try:
            if self.rows is not None or self.merged is not None:
                patchwork.attribute(inner, self.features, self._giving(getattr(inner, self.features)))
            if self.positions is not None:
                patchwork.attribute(inner, "get_rope_index", self._placing(inner.get_rope_index))
            if self.planes:
                planes = itertools.cycle(self.planes)
                add = lambda hidden, *rows: hidden + next(planes)  # noqa: E731
                patchwork.attribute(self.family.language_model, self.family.planes_method, add)
            if self.columns:
                self.step = 0
                layers = self.family.language_model.layers
                for layer in range(min(self.columns), len(layers)):
                    patchwork.pre_hook(layers[layer], functools.partial(self._layer, layer))
            yield self.family.model
        finally:
            patchwork.undo()

    def _giving(self, original: Callable) -> Callable:
        @functools.wraps(original)
        def get_features(*args, **kwargs):
            output = original(*args, **kwargs)
            given, merged = output.pooler_output, self.merged
            if merged is None:
                sizes = [image.before for prompt in self.prompts for image in prompt]
                features = torch.cat(list(given)).split(sizes)
                merged = [x.index_select(0, rows) for x, rows in zip(features, self.rows, strict=True)]
            output.pooler_output = torch.cat(merged).unsqueeze(0) if isinstance(given, Tensor) else merged
            return output

        return get_features

    def _placing(self, original: Callable) -> Callable:
        """Positions of the unpruned prompt are computed, as stock models do, and replaced by the recorded ones."""
        names = ("input_ids", "attention_mask", "mm_token_type_ids")
        unpruned = {name: self.given[name] for name in names if name in self.given}
        signature = inspect.signature(original)

        @functools.wraps(original)
        def get_rope_index(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            bound.arguments.update({name: x for name, x in unpruned.items() if name in bound.arguments})
            original(*bound.args, **bound.kwargs)
            return self.positions, self.delta

        return get_rope_index

    def _layer(self, layer: int, module: nn.Module, args: tuple, kwargs: dict):
        hidden = args[0] if args else kwargs["hidden_states"]
        first = layer == min(self.columns)
        if hidden.shape[1] == 1:
            self.step += first
            if not self.differs[layer]:
                return None
        elif first:
            self.step = 0
        given = {**kwargs, "position_embeddings": self.rotary[self.step][layer], "position_ids": None}
        if given.get("attention_mask") is not None:
            raise NoOracle("the layers were given a mask")
        if hidden.shape[1] > 1 and layer in self.columns:
            hidden = _gathered(hidden, self.columns[layer])
        return ((hidden, *args[1:]), given) if args else (args, {**given, "hidden_states": hidden})


def _gathered(hidden: Tensor, index: Tensor) -> Tensor:
    """hidden [B, S, D] at the columns index [B, K] -> [B, K, D]."""
    return hidden.gather(1, index.unsqueeze(-1).expand(-1, -1, hidden.shape[2]))


def difference(recording: Recording, output: object) -> float:
    """The largest difference of the first token's logits from the patched model's, relative to their largest."""
    a, b = recording.logits.float(), output.logits[0].float()
    return float((a - b).abs().max() / a.abs().max().clamp(min=1e-30))
