"""What the tests share: tiny models of every family, a batch taken apart, spies, and an oracle that knows no engine."""

import functools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from transformers import MistralConfig, Qwen2Config, Qwen3Config

import vtc
from tests import helpers_delta
from vtc.check.batch import IMAGES, Generated, Words, forward, generate, grow, positions_of, real_columns, split
from vtc.check.trace import shape_of, state
from vtc.check.trial import Tiny, Trial
from vtc.config.strategy import StrategyConfig
from vtc.core.budget import Budget
from vtc.core.signals import Decoder
from vtc.patches import FAMILIES
from vtc.patches._tiny import BOS, EOS, IMAGE_TOKEN, PAD, TEXT
from vtc.patching import find_family

__all__ = ["IMAGES", "Words", "Generated", "forward", "generate", "grow", "positions_of", "shape_of", "split", "state"]

helpers_delta.install()
SPECIAL = dict(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
VARIANTS = {
    "llava-siglip": ("llava", lambda: dict(tower="siglip")),
    "llava-mistral": ("llava", lambda: dict(text=MistralConfig(**TEXT, **SPECIAL))),
    "llava-qwen2": ("llava", lambda: dict(text=Qwen2Config(**TEXT, **SPECIAL))),
    "internvl-qwen3": ("internvl", lambda: dict(text=Qwen3Config(**TEXT, **SPECIAL, head_dim=24))),
}
INDUCTOR = pytest.mark.skipif(
    shutil.which("g++") is None or " " in torch.__file__,
    reason="Inductor needs g++, and cannot include torch's headers from a path with a space",
)
CASES = [*vtc.families(), *(case for case in VARIANTS if case != "internvl-qwen3")]  # which test_crops.py looks at
HYBRIDS = [name for name in vtc.families() if FAMILIES[name].softmax_layers(4) is not None]  # see test_hybrid.py
WITH_ENCODER_SITE = [case for case in CASES if "encoder" not in FAMILIES[case.partition("-")[0]].refuses]
IN_ENCODER = [name for name in vtc.strategies() if vtc.load_strategy(name).encoder]
INSIDE = [name for name in vtc.strategies() if vtc.load_strategy(name).decoder and name not in IN_ENCODER]
# Those whose choice depends on the prompt's text: without a cache they choose anew when the text has grown.
READERS = ("cdpruner", "mmtok", "recoverable", "visiontrim")
ADAPTIVE = [name for name in vtc.strategies() if any(s.stage.adaptive for s in vtc.load_strategy(name).stages)]
CHANGING = [name for name in vtc.strategies() if vtc.load_strategy(name).attention]  # attention, dropping nothing
PROJECTOR = [name for name in vtc.strategies() if name not in (*INSIDE, *IN_ENCODER, *CHANGING)]  # there only
CLIPS = [name for name in PROJECTOR if vtc.load_strategy(name).projector.stage.clips]  # keep images whole
STRATEGIES = [name for name in PROJECTOR if name not in CLIPS]


def family_of(case: str) -> str:
    """The family's name of a case such as "llava-siglip"."""
    return VARIANTS[case][0] if case in VARIANTS else case


@functools.cache
def sites_of(name: str) -> frozenset[str]:
    """The sites of a strategy's stages; none for any other word."""
    return frozenset(s.stage.site for s in vtc.load_strategy(name).stages) if name in vtc.strategies() else frozenset()


def build(case: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A fresh tiny model; the weights are the same every time.

    It has run once, because transformers leaves hooks for hidden states on a model when they are first asked for.
    """
    options = VARIANTS[case][1]() if case in VARIANTS else {}
    family = FAMILIES[family_of(case)]
    model = family.tiny(**options).to(dtype)
    inputs = family.tiny_inputs(model, (1,))
    with torch.no_grad():
        model(**{k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}, output_hidden_states=True)
    return model


@functools.cache
def model_of(case: str) -> nn.Module:
    """The float64 model of a case, shared by all tests of the process: patch it in a with-block only."""
    return build(case)


def inputs_of(case: str, images: tuple[int, ...] = IMAGES, dtype: torch.dtype = torch.float64, **options) -> dict:
    """A padded batch for `model_of(case)`, floating-point inputs in `dtype`."""
    inputs = FAMILIES[family_of(case)].tiny_inputs(model_of(case), images, **options)
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}


@torch.no_grad()
def proceed(model: nn.Module, cache, mask: Tensor, tokens: Tensor) -> tuple:
    """Feeds `tokens` [B, n] on a filled cache whose columns `mask` [B, L] describes, with positions that count real
    tokens; returns the output and the mask [B, L + n]."""
    mask = torch.cat([mask, torch.ones_like(tokens)], 1)
    where = {}
    if not any(FAMILIES[name].mrope for name in FAMILIES if model.config.model_type in FAMILIES[name].model_types):
        where["position_ids"] = (mask.cumsum(1) - 1)[:, -tokens.shape[1] :]
    return model(input_ids=tokens, attention_mask=mask, past_key_values=cache, **where), mask


def by_hand(model: nn.Module, inputs: dict, steps: int, choose: Callable[[Tensor], Tensor]) -> Tensor:
    """Prefill and steps with forward() and the cache, as a user's own loop would do it; tokens [B, steps]."""
    out, mask = forward(model, inputs, use_cache=True), inputs["attention_mask"]
    tokens = [choose(out.logits[:, -1])]
    for _ in range(steps - 1):
        out, mask = proceed(model, out.past_key_values, mask, tokens[-1])
        tokens.append(choose(out.logits[:, -1]))
    return torch.cat(tokens, 1)


def patched(model: nn.Module, strategy, **options):
    """`vtc.patched`, with a tokenizer for strategies that read the question."""
    return vtc.patched(model, strategy, processor=Words(), **options)


def subject_of(strategy: str, case: str, **given) -> Trial:
    """A strategy on the shared model of a case, as `vtc.check` takes it."""
    return Trial(strategy, Tiny(family_of(case), model=model_of(case)), given)


@contextmanager
def spy(model: nn.Module) -> Iterator[list[dict]]:
    """Collects the keyword arguments that reach the language model, after the patch's own hooks; masks by layer type as
    the 2-D mask that belongs to them."""
    seen: list[dict] = []

    def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append({**kwargs, "attention_mask": real_columns(kwargs.get("attention_mask"))})

    handle = find_family(model).language_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def kept_of(report, prompt: int) -> list[Tensor]:
    """The kept places of each image of a prompt, in order."""
    return [image.kept for image in report.images if image.prompt == prompt]


def image_places(ids: Tensor, report, prompt: int) -> list[Tensor]:
    """Where each image of a prompt [L] lies, from the placeholders and the sizes that the report gives."""
    places = (ids == IMAGE_TOKEN).nonzero().flatten()
    return list(places.split([image.before for image in report.images if image.prompt == prompt]))


@contextmanager
def unharmed(model: nn.Module, inputs: dict) -> Iterator[Tensor]:
    """Checks that the model leaves the block as it entered it: the same objects, bit-equal logits (what it yields)."""
    before, stock = state(model), forward(model, inputs).logits
    yield stock
    assert state(model) == before
    assert torch.equal(forward(model, inputs).logits, stock)


def check_no_trace(model: nn.Module, inputs: dict, strategy: str, **options) -> None:
    """keep=1.0 and a removed patch are bit-equal to the stock model, and nothing is left on any module or config."""
    before = state(model)
    with unharmed(model, inputs) as stock:
        with patched(model, strategy, keep=1.0):
            assert torch.equal(forward(model, inputs).logits, stock)
        assert state(model) == before
        vtc.patch(model, strategy, processor=Words(), **options)
        assert state(model) != before
        assert forward(model, inputs).logits.shape[1] < stock.shape[1]
        generate(model, inputs, 3)
        assert vtc.unpatch(model) is model


def refused(call: Callable, *words: str, kind=vtc.VtcError) -> str:
    """Checks that `call` raises `kind` (a class or several) with a message as `refusal` wants it; returns that."""
    with pytest.raises(kind) as caught:
        call()
    return refusal(caught.value, *words)


def refusal(error: Exception, *words: str) -> str:
    """The message of an error, checked to be one line, not too long, that holds all of `words`."""
    message = str(error)
    assert "\n" not in message
    assert message.strip() == message
    assert len(message) < 600
    for word in words:
        assert word in message
    return message


def projector_budget(config: StrategyConfig) -> Budget:
    """What a strategy keeps at the projector of a model of 32 layers."""
    return config.allocate(Decoder("test", 32)).projector
