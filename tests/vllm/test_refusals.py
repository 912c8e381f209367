"""What cannot be served pruned ends the start, or the request, with one line that says what is possible."""

import pytest
import torch

from tests.vllm.engines import differences, overrides, request
from tests.vllm.pictures import noise_asks
from tests.vllm.reference import reference

LLAVA, QWEN = "VtcLlavaForConditionalGeneration", "VtcQwen2_5_VLForConditionalGeneration"


def by_hand(architecture: str = LLAVA, **vtc) -> dict:
    """Arguments of vllm.LLM with overrides as a user may write them."""
    return {"hf_overrides": {"architectures": [architecture], "vtc": vtc}}


REFUSED = [
    (by_hand(strategy="fastv"), "inside the language model"),
    (by_hand(strategy="hiprune+fastv", keep=0.25), "inside the language model"),
    (by_hand(strategy="todre"), "inside the language model"),
    (by_hand(strategy="mmtok", keep=0.25), "reads the question"),
    (by_hand(strategy="hypothetical", keep=0.25), "'hypothetical'"),
    (by_hand(strategy="hiprune", keep=1.5), "keep=1.5"),
    (by_hand(strategy="hiprune", keep=0.25, max_keep="all"), "'all'"),
    (by_hand(strategy="hiprune", keep=300), "keep=300"),
    (by_hand(strategy="hiprune", kept=0.25), "kept"),
    (by_hand(strategy="hiprune", keep=0.25, knobs={"beta": 1}), "beta"),
    (by_hand(strategy="hiprune", keep=0.25, knobs={"deep_layer": -1}), "layer 7"),
    (by_hand(strategy="hiprune", keep=0.25, knobs={"positions": "keep"}), "positions='keep'"),
    ({"hf_overrides": {"architectures": [LLAVA]}}, "hf_overrides"),
    ({"hf_overrides": {"architectures": [LLAVA], "vtc": "hiprune"}}, "hf_overrides"),
    ({**by_hand(strategy="hiprune"), "enable_mm_embeds": True}, "enable_mm_embeds"),
    ({**by_hand(strategy="hiprune"), "mm_processor_kwargs": {"vtc_keep": 0.5}}, "mm_processor_kwargs"),
    ({**by_hand(QWEN, strategy="hiprune"), "mm_encoder_tp_mode": "data", "model": "qwen2_5_vl"}, "mm_encoder_tp_mode"),
    ({**by_hand(strategy="hiprune"), "compilation_config": {"cudagraph_mm_encoder": True}}, "cudagraph_mm_encoder"),
    ({**by_hand(strategy="hiprune"), "video_pruning_rate": 0.5}, "video_pruning_rate"),
]


@pytest.fixture(scope="module")
def starts(engines, demo, checkpoint):
    """Why each start of REFUSED failed; all in one process."""
    tries = [changes for changes, _ in REFUSED]
    tries = [{**t, "model": str(checkpoint(t["model"]))} if "model" in t else t for t in tries]
    return engines.start(demo, [], starts=tries).result()["starts"]


@pytest.mark.parametrize("number", range(len(REFUSED)), ids=[word for _, word in REFUSED])
def test_start(starts, number):
    """The line names what was wrong and what is possible."""
    error = starts[number]
    assert error is not None, "it started"
    lines = [line for line in error.splitlines() if REFUSED[number][1] in line and "possible: " in line]
    assert len(lines) == 1, error


def test_requests(engines, checkpoint, folder):
    """A video, embeddings, and bad keeps to a Qwen model: refused, and the next request is answered as ever."""
    model, asks = checkpoint("qwen2_5_vl"), noise_asks(folder, "qwen2_5_vl")[:2]
    video, embeds = folder / "video.pt", folder / "embeds.pt"
    torch.save(torch.zeros(4, 56, 56, 3, dtype=torch.uint8), video)
    torch.save({"image_embeds": torch.zeros(16, 128), "image_grid_thw": torch.tensor([[1, 8, 8]])}, embeds)
    clip = asks[0].prompt.replace("image_pad", "video_pad")
    bad = [
        ({"prompt": clip, "extra": {"video": str(video)}}, "video"),
        ({"prompt": asks[0].prompt, "extra": {"image": str(embeds)}}, "embed"),
        (request(asks[0], 0.6), "keep=0.6"),
        (request(asks[0], -1), "keep=-1"),
        (request(asks[0], True), "keep=True"),
        (request(asks[0], kwargs={"vtc_kept": 0.1}), "vtc_kept"),
    ]
    good = [request(ask) for ask in asks]
    rounds = [good, *([wrong] for wrong, _ in bad), good]
    engine = engines.start(model, rounds, overrides(model, "hiprune", 0.25, max_keep=0.5))
    expected = reference(model, asks, "hiprune", 0.25, exclude="exact")
    result = engine.result()
    assert result["start_error"] is None
    first, *refused, last = result["rounds"]
    for found in (first, last):
        assert not differences(asks, expected, found["answers"])
    for (_, word), found in zip(bad, refused, strict=True):
        assert found["error"] is not None, f"{word}: answered {found['answers']}"
        assert word in found["error"]
