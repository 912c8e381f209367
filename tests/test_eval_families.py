"""Evaluation of a model whose grid follows the picture: a tiny random Qwen2-VL behind a processor made here."""

import inspect
import json

import pytest
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BatchFeature, PreTrainedTokenizerFast

from tests.test_eval import log
from vtc.eval.runner import evaluate
from vtc.eval.settings import Settings
from vtc.eval.tasks.demo import Demo
from vtc.patches import FAMILIES

IMAGE, START, END = "<image>", "<start>", "<end>"
SIZES = ((64, 48), (40, 80), (120, 96))  # width, height: 6 x 8, 10 x 5 and 12 x 15 tokens of 8 x 8 pixels


class Processor:
    """What a Qwen2VLProcessor does with pictures and text; the real one wants torchvision for videos."""

    chat_template = "images, then text"

    def __init__(self, model):
        config, self.arguments = model.config, inspect.signature(model.forward).parameters
        try:
            from transformers import Qwen2VLImageProcessorPil as ImageProcessor
        except ImportError:
            from transformers import Qwen2VLImageProcessor as ImageProcessor
        self.image_processor = ImageProcessor(patch_size=4, merge_size=2, min_pixels=64, max_pixels=2**16)
        names = {0: "<pad>", 1: "<s>", 2: "</s>", 3: "<unk>", config.image_token_id: IMAGE}
        names |= {config.vision_start_token_id: START, config.vision_end_token_id: END}
        words = {names.get(i, f"w{i}"): i for i in range(config.get_text_config().vocab_size)}
        core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>")
        self.image_id = config.image_token_id

    def apply_chat_template(self, turns, add_generation_prompt):
        """One line."""
        parts = [f"{START} {IMAGE} {END}" if p["type"] == "image" else p["text"] for p in turns[0]["content"]]
        return " ".join(parts)

    def __call__(self, text, images, padding, add_special_tokens, return_tensors):
        """input_ids, attention_mask, pixel_values, image_grid_thw, mm_token_type_ids."""
        flat = [picture for mine in images for picture in mine]
        seen = self.image_processor(images=flat, return_tensors="pt")
        counts = iter((seen["image_grid_thw"].prod(1) // 4).tolist())
        texts = [
            " ".join(IMAGE + f" {IMAGE}" * (next(counts) - 1) if w == IMAGE else w for w in t.split()) for t in text
        ]
        ids = self.tokenizer(texts, padding=padding, add_special_tokens=add_special_tokens, return_tensors="pt")
        data = {"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"], **seen}
        if "mm_token_type_ids" in self.arguments:
            data["mm_token_type_ids"] = (ids["input_ids"] == self.image_id).int()
        return BatchFeature(data)

    def batch_decode(self, ids, skip_special_tokens):
        """Words."""
        return self.tokenizer.batch_decode(ids, skip_special_tokens=skip_special_tokens)


@pytest.fixture
def qwen(tmp_path, monkeypatch):
    """A folder that loads as a tiny Qwen2-VL, and the demo task with pictures of several shapes."""
    folder = tmp_path / "tiny-qwen"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    model = FAMILIES["qwen2_vl"].tiny()
    processor = Processor(model)
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda *a, **k: processor)
    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", lambda *a, **k: model)
    pictures = [Image.effect_noise(size, 90) for size in SIZES]
    monkeypatch.setattr(Demo, "images", lambda self, doc: [pictures[int(doc["id"][-1]) % 3]])
    monkeypatch.setattr(Demo, "prompt", lambda self, doc: " ".join(["w9"] * (3 + int(doc["id"][-1]))))
    return folder


def test_counts_follow_the_picture(qwen, tmp_path):
    """Every picture has its own count; pruning and downsampling cut each, and both logs say by how much."""
    strategies = ("none", "hiprune", "downsample")
    options = dict(model=str(qwen), strategies=strategies, keeps=("0.25",), limit=6, max_new_tokens=3)
    assert evaluate(Settings(output=tmp_path / "out", batch_size=3, **options)) == 0
    full = [48, 50, 180] * 2
    rows = {run: log(tmp_path / "out", run) for run in ("none", "hiprune-keep0.25", "downsample-keep0.25")}
    for run in rows.values():
        assert [row["visual_before"] for row in run] == full
        assert all(row["tokens_out"] == 3 for row in run)
        assert len({row["text_in"] for row in run}) == 6, "padding is not counted"
    assert [row["visual_after"] for row in rows["none"]] == full
    assert [row["visual_after"] for row in rows["hiprune-keep0.25"]] == [12, 12, 45] * 2
    for row, n in zip(rows["downsample-keep0.25"], full):
        assert n * 0.25 * 0.75 <= row["visual_after"] <= n * 0.25 + 1
        assert row["prefill_flops"][1] < row["prefill_flops"][0]
        assert row["seconds"]["prefill"] > 0
    result = json.loads((tmp_path / "out" / "runs" / "downsample-keep0.25.json").read_text())
    assert result["method"]["downsample"]["mode"] == "grid"
    evaluate(Settings(output=tmp_path / "single", batch_size=1, **options))
    for run, batched in rows.items():
        assert [row["text"] for row in log(tmp_path / "single", run)] == [row["text"] for row in batched]


def test_a_count_beyond_the_picture(qwen, tmp_path):
    """keep=100 keeps all of the small pictures and 100 of the large one; no run is stopped for it."""
    options = dict(model=str(qwen), strategies=("uniform", "downsample"), keeps=("100",), limit=3, max_new_tokens=2)
    assert evaluate(Settings(output=tmp_path / "out", **options)) == 0
    assert [row["visual_after"] for row in log(tmp_path / "out", "uniform-keep100")] == [48, 50, 100]
    after = [row["visual_after"] for row in log(tmp_path / "out", "downsample-keep100")]
    assert after[:2] == [48, 50]
    assert 75 <= after[2] <= 100
