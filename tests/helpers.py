"""What the tests share: tiny models of every family, a batch taken apart, spies, and an oracle that knows no engine."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from transformers import MistralConfig, Qwen2Config

import vtc
from vtc.config.strategy import StrategyConfig
from vtc.core.budget import Budget
from vtc.core.signals import Decoder
from vtc.patches import FAMILIES
from vtc.patches._tiny import BOS, EOS, IMAGE_TOKEN, PAD, TEXT

SPECIAL = dict(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
VARIANTS = {
    "llava-siglip": ("llava", lambda: dict(tower="siglip")),
    "llava-mistral": ("llava", lambda: dict(text=MistralConfig(**TEXT, **SPECIAL))),
    "llava-qwen2": ("llava", lambda: dict(text=Qwen2Config(**TEXT, **SPECIAL))),
}
CASES = [*vtc.families(), *VARIANTS]
IMAGES = (1, 2, 1)
IN_ENCODER = [name for name in vtc.strategies() if vtc.load_strategy(name).encoder]
INSIDE = [name for name in vtc.strategies() if vtc.load_strategy(name).decoder and name not in IN_ENCODER]
# Those whose choice depends on the prompt's text: without a cache they choose anew when the text has grown.
READERS = ("cdpruner", "mmtok")
STRATEGIES = [name for name in vtc.strategies() if name not in (*INSIDE, *IN_ENCODER)]  # at the projector only


def family_of(case: str) -> str:
    """The family's name of a case such as "llava-siglip"."""
    return VARIANTS[case][0] if case in VARIANTS else case


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


def split(inputs: dict, images: tuple[int, ...] = IMAGES) -> list[dict]:
    """The prompts of a batch one by one, without padding."""
    singles, first, patch = [], 0, 0
    for b, count in enumerate(images):
        real = inputs["attention_mask"][b].bool()
        per_token = [k for k in ("input_ids", "attention_mask", "mm_token_type_ids") if k in inputs]
        one = {k: inputs[k][b : b + 1, real] for k in per_token}
        mine = slice(first, first + count)
        if count and "image_grid_thw" in inputs:
            patches = int(inputs["image_grid_thw"][mine].prod(1).sum())
            one["image_grid_thw"] = inputs["image_grid_thw"][mine]
            one["pixel_values"] = inputs["pixel_values"][patch : patch + patches]
            patch += patches
        elif count:
            one.update({k: inputs[k][mine] for k in ("pixel_values", "image_sizes") if k in inputs})
        singles.append(one)
        first += count
    return singles


def grow(inputs: dict, tokens: Tensor) -> dict:
    """The inputs with `tokens` [B, n] after the prompts."""
    grown = dict(inputs, input_ids=torch.cat([inputs["input_ids"], tokens], 1))
    grown["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(tokens)], 1)
    if "mm_token_type_ids" in inputs:
        grown["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(tokens)], 1).int()
    return grown


def positions_of(inputs: dict) -> dict:
    """`position_ids` that count real tokens, as generate() makes them, where the model itself would count padding."""
    if "image_grid_thw" in inputs or "mm_token_type_ids" in inputs:
        return {}
    mask = inputs["attention_mask"]
    return {"position_ids": (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)}


@torch.no_grad()
def forward(model: nn.Module, inputs: dict, **options):
    """A forward pass whose positions do not depend on padding."""
    return model(**inputs, **positions_of(inputs), **options)


@torch.no_grad()
def proceed(model: nn.Module, cache, mask: Tensor, tokens: Tensor) -> tuple:
    """Feeds `tokens` [B, n] on a filled cache whose columns `mask` [B, L] describes, with positions that count real
    tokens; returns the output and the mask [B, L + n]."""
    mask = torch.cat([mask, torch.ones_like(tokens)], 1)
    where = {}
    if model.config.model_type.startswith("llava"):
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


@dataclass
class Written:
    """What generate() wrote. tokens [B, n]: after the prompt; logits [n, B, V]: of each step, in the model's own type
    (`output_logits` is always float32); output: the object that generate() returned."""

    tokens: Tensor
    logits: Tensor
    output: object


def generate(model: nn.Module, inputs: dict, tokens: int = 8, **options) -> Written:
    """generate(), greedy unless told otherwise, with the logits of each step as the model computed them."""
    steps: list[Tensor] = []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: steps.append(output[:, -1]))
    try:
        options = {"do_sample": False, "return_dict_in_generate": True, **options}
        output = model.generate(**inputs, max_new_tokens=tokens, **options)
    finally:
        handle.remove()
    given = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    return Written(output.sequences[:, given:], torch.stack(steps), output)


class Words:
    """A tokenizer for the tiny models, for methods that read the question: a token is a word, in Vicuna's template."""

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        """The prompt as text."""
        return f"USER: {' '.join(f'word{i}' for i in ids)} ASSISTANT:"

    def __call__(self, words: list[str], is_split_into_words: bool = True, add_special_tokens: bool = False) -> dict:
        """The ids of words; what is no token of its own becomes one that depends on its letters."""
        known = [word.removeprefix("word") for word in words]
        return {"input_ids": [int(w) if w.isdecimal() else 3 + sum(map(ord, w)) % 90 for w in known]}


def patched(model: nn.Module, strategy, **options):
    """`vtc.patched`, with a tokenizer for strategies that read the question."""
    return vtc.patched(model, strategy, processor=Words(), **options)


@contextmanager
def spy(model: nn.Module) -> Iterator[list[dict]]:
    """Collects the keyword arguments that reach the language model, after the patch's own hooks."""
    seen: list[dict] = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(dict(kwargs)), with_kwargs=True
    )
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


def shape_of(value: object) -> object:
    """The own attributes of a live object by identity: equal before and after means no trace."""
    return {name: id(item) for name, item in sorted(vars(value).items(), key=lambda pair: pair[0])}


def state(model: nn.Module) -> dict:
    """Everything that a patch could leave on a model: every module's attributes, hook dictionaries, and its config.

    `rope_deltas` is left out: the stock Qwen models write it in each forward.
    """
    found = {}
    for name, module in model.named_modules():
        found[name] = shape_of(module)
        found[name].pop("rope_deltas", None)
        for key, value in vars(module).items():
            if isinstance(value, dict):
                found[name, key] = {k: id(v) for k, v in value.items()}
    config = model.config
    found["config"] = (id(config), config.to_json_string(), shape_of(config))
    found["generation"] = model.generation_config.to_json_string()
    found["attention"] = config._attn_implementation
    return found


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
