"""The plugin in front of the encoder, on stand-ins for vLLM's classes: hashes, counts, placeholders, limits."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from transformers import LlavaConfig, LlavaNextConfig, Qwen2_5_VLConfig

from vtc.core.errors import ConfigError, UnsupportedError
from vtc.vllm.processing import COUNT, PrunedInfo, PrunedProcessor
from vtc.vllm.settings import REQUEST_KEEP, overrides, unpacked

TOKEN = LlavaConfig().image_token_id


class StockInfo:
    """As much of a ProcessingInfo as the mixin calls."""

    def __init__(self, ctx):
        self.ctx = ctx

    @property
    def model_id(self) -> str:
        """As vLLM's."""
        return "some/model"

    def get_hf_processor(self, **kwargs):
        """Returns what it was given."""
        return kwargs


class Info(PrunedInfo, StockInfo):
    """A model's info."""

    def largest_layouts(self):
        """One image of 336 x 336 pixels."""
        return self.settings.family.image_layouts({"pixel_values": torch.empty(1, 3, 336, 336, device="meta")})


class StockProcessor:
    """vLLM's order of events: hash, transformers' processor, fields, prompt; with the names of its versions."""

    argument = "hf_kwargs"

    def __init__(self, info, hf_inputs):
        self.info, self.hf_inputs, self.seen = info, hf_inputs, []

    def apply(self, inputs, timing):
        """Returns the hash, the image fields, and the prompt with placeholders."""
        kwargs = inputs.hf_processor_mm_kwargs
        mark = (self.info.model_id, inputs.uuid, tuple(sorted(kwargs.items())))
        hf = self._apply_hf_processor_main(mm_items=["image"], **{self.argument: kwargs})
        fields = self._get_mm_fields_config(hf, kwargs)
        count = len(hf.get(COUNT, []))
        there = [name for name in fields if name in hf]
        items = {"image": [{name: SimpleNamespace(data=hf[name][i]) for name in there} for i in range(count)]}
        (update,) = self._get_prompt_updates(None, kwargs, items)
        found, images = [], iter(range(count))
        for token in inputs.prompt:
            found += update.replacement(next(images)) if token in update.target else [token]
        return mark, items["image"], found

    def _apply_hf_processor_main(self, mm_items, **kwargs):
        self.seen.append(kwargs)
        return dict(self.hf_inputs)

    def _get_mm_fields_config(self, hf_inputs, kwargs):
        self.seen.append(kwargs)
        return {"pixel_values": "batched"}


class Processor(PrunedProcessor, StockProcessor):
    """A model's processor."""


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch):
    """The two names that the mixin takes from vLLM while it runs."""
    field = SimpleNamespace(batched=lambda modality, keep_on_cpu: (modality, keep_on_cpu))
    names = {
        "inputs": {"MultiModalFieldConfig": field}, "processing": {"PromptReplacement": SimpleNamespace},
        "encoder_budget": {"compute_mm_encoder_budget": lambda config, most: (max(config, *most.values()), 9999)},
    }  # fmt: skip
    package = ModuleType("vllm.multimodal")
    monkeypatch.setitem(sys.modules, "vllm.multimodal", package)
    for name, inside in names.items():
        module = SimpleNamespace(**inside)
        monkeypatch.setitem(sys.modules, f"vllm.multimodal.{name}", module)
        setattr(package, name, module)


def info_of(config=None, mm_config=None, **given) -> Info:
    """The info of a model served by `overrides(**given)`."""
    config = config or LlavaConfig()
    config.update(overrides(config, **given))
    return Info(SimpleNamespace(model_config=SimpleNamespace(hf_config=config, multimodal_config=mm_config)))


def served(images: int = 2, request: dict | None = None, uuid: str | None = None, hf_inputs=None, info=None, **given):
    """One prompt with images through the processor."""
    info = info or info_of(**{"keep": 0.25, "max_keep": 1.0, **given})
    pixels = {"pixel_values": torch.empty(images, 3, 336, 336, device="meta")}
    processor = Processor(info, pixels if hf_inputs is None else hf_inputs)
    prompt = [1, *[TOKEN] * images, 2]
    row = SimpleNamespace(prompt=prompt, uuid=uuid, hf_processor_mm_kwargs=request or {})
    return (*processor.apply(row, None), processor)


@pytest.mark.parametrize("asked, count", [(None, 144), (0.5, 288), ("64", 64), (1.0, 576)])
def test_placeholders_are_what_is_kept(asked, count):
    """The prompt has as many placeholders per image as its field says, and the keep goes along with the image."""
    _, items, prompt, _ = served(request={} if asked is None else {"vtc_keep": asked})
    assert prompt == [1, *[TOKEN] * 2 * count, 2]
    assert [int(item[COUNT].data) for item in items] == [count, count]
    keep = unpacked(float(items[0][REQUEST_KEEP].data))
    assert keep == {None: 0.25, "64": 64}.get(asked, asked)
    assert items[0][REQUEST_KEEP].data.dtype == torch.float64


@pytest.mark.parametrize("argument", ["hf_kwargs", "hf_processor_mm_kwargs"])
def test_transformers_never_sees_our_argument(argument, monkeypatch):
    """Whatever the version calls its arguments; others are passed on."""
    monkeypatch.setattr(StockProcessor, "argument", argument)
    *_, processor = served(request={"vtc_keep": 0.5, "do_resize": True})
    assert processor.seen == [{argument: {"do_resize": True}}, {"do_resize": True}]
    assert processor.info.get_hf_processor(vtc_keep=0.5, do_resize=True) == {"do_resize": True}


def test_the_hash_holds_everything_that_changes_the_selection():
    """Strategy, knobs, and the keep whether a request names it or not; user-given ids do not hide it."""
    marks = {
        served(request=request, uuid=uuid, **given)[0]
        for request in ({}, {"vtc_keep": 0.5})
        for uuid in (None, "mine")
        for given in ({}, {"alpha": 0.3}, {"strategy": "vtc_cls"})
    }
    assert len(marks) == 12
    assert served()[0] == served(request={"vtc_keep": 0.25})[0] == served(request={"vtc_keep": "0.25"})[0]
    assert served(keep=0.5)[0] == served(request={"vtc_keep": 0.5})[0]  # two servers may share what they stored


@pytest.mark.parametrize("bad, message", [
    (1.5, "keep=1.5 is out of range"), ("lots", "keep='lots' is not a number"), (0, "keep=0 is out of range"),
    (600, "keep=600 is more than the 576"), (0.75, "more than the 288 of this server's max_keep=0.5"),
])  # fmt: skip
def test_bad_keeps_are_one_clear_line(bad, message):
    """A ValueError, which the server answers with status 400; nothing was stored."""
    with pytest.raises(ConfigError, match=message):
        served(request={"vtc_keep": bad}, max_keep=0.5)


def test_prompts_without_images_pass():
    """Nothing is counted."""
    _, items, prompt, _ = served(images=0, hf_inputs={})
    assert (items, prompt) == ([], [1, 2])


def test_embeddings_are_refused():
    """They carry no attention; the server is not started with the option either."""
    with pytest.raises(ConfigError, match="image embeddings carry no attention"):
        served(hf_inputs={"image_embeds": torch.empty(1, 576, 8)})
    with pytest.raises(UnsupportedError, match="enable_mm_embeds"):
        info_of(mm_config=SimpleNamespace(enable_mm_embeds=True))


def test_limits_are_those_of_the_largest_keep():
    """Encoder budget and cache have room for what a request may ask for; videos are not taken."""
    info = info_of(keep=0.25, max_keep=0.5)
    assert info.get_mm_max_tokens_per_item(4096, {"image": 1}) == {"image": 288}
    assert info.get_supported_mm_limits() == {"image": None}


@pytest.mark.parametrize("max_keep, tokens, images", [(0.25, 512, 3), (0.5, 1024, 3), (1.0, 2048, 3), (1, 4, 4)])
def test_a_step_encodes_no_more_images_than_unpruned(max_keep, tokens, images):
    """Of 2048 tokens a step, which hold three whole images; the cache stays as large as it was."""
    info = info_of(keep=1 if max_keep == 1 else 0.25, max_keep=max_keep)
    for _ in range(2):
        most = info.get_mm_max_tokens_per_item(4096, {"image": 1})
    module = sys.modules["vllm.multimodal.encoder_budget"]
    assert module.compute_mm_encoder_budget(2048, most) == (tokens, 9999)
    assert tokens // most["image"] == images
    assert module.compute_mm_encoder_budget(100, most)[0] >= most["image"]  # one image always fits
    assert module.compute_mm_encoder_budget(2048, {"image": 144}) == (2048, 9999)  # another model's


def test_counts_of_families_with_sizes_of_their_own():
    """LLaVA-NeXT by picture size, tile by tile; Qwen by grid."""
    info = info_of(LlavaNextConfig(), keep=0.25, max_keep=1.0)
    sizes = {"pixel_values": [0, 0], "image_sizes": torch.tensor([[672, 672], [336, 1008]])}
    _, items, _, _ = served(info=info, hf_inputs=sizes)
    assert [int(item[COUNT].data) for item in items] == [5 * 144, 4 * 144]
    info = info_of(Qwen2_5_VLConfig(), keep=0.25, max_keep=1.0)
    grids = {"pixel_values": [0, 0], "image_grid_thw": torch.tensor([[1, 36, 36], [1, 20, 60]])}
    _, items, _, _ = served(info=info, hf_inputs=grids)
    assert [int(item[COUNT].data) for item in items] == [81, 75]


def test_a_strategy_that_cannot_be_served_ends_the_start():
    """The info is made when the engine starts, before weights are loaded."""
    config = LlavaConfig()
    config.update({"vtc": {"strategy": "fastv", "keep": 0.6}})
    context = SimpleNamespace(model_config=SimpleNamespace(hf_config=config, multimodal_config=None))
    with pytest.raises(UnsupportedError, match="'fastv' drops tokens inside the language model"):
        Info(context)
