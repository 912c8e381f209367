"""Measuring vLLM, as far as it goes without vLLM: what is served, what is asked, what is made of the figures."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from tests.helpers_checkpoints import image_processor
from tests.test_cli import run as cli
from vtc.bench.presets import config_of, presets
from vtc.bench.results import FILE, Results, check_comparable, read
from vtc.bench.serving.ratios import SERVING, STOCK, summary
from vtc.bench.serving.serving_plot import plot
from vtc.bench.serving.serving_table import lines
from vtc.bench.serving.throughput import ServingOptions, engine_options, run
from vtc.bench.serving.workload import kv_bytes, requests, save, served
from vtc.bench.speed_rows import SPEED
from vtc.core.errors import ConfigError
from vtc.eval.processors import pictures_only
from vtc.patches import FAMILIES
from vtc.patches._preset import Preset

SETTINGS = {"preset": "tiny"}


def cell(system: str, concurrency: int, number: int, seconds: float, blocks: int, encoder: float | None = 1.0) -> dict:
    """A measured cell with ten requests."""
    return {
        "system": system, "concurrency": concurrency, "round": number, "resolved": None, "requests": 10,
        "seconds": seconds, "rate": 10 / seconds, "blocks": blocks, "prompt_tokens": 640 if system == STOCK else 208,
        "first": seconds / 10, "whole": seconds / 5, "steps": 9, "preempted": 0, "encoder": encoder, "cpu": seconds,
        "load": 2.0,
    }  # fmt: skip


def two_rounds() -> list[dict]:
    """A strategy that is twice as fast alone and slower among eight, on a machine that halves its speed meanwhile."""
    cells = []
    for number, slow in enumerate((1, 2)):
        cells += [cell(STOCK, 1, number, 8 * slow, 20), cell("hiprune 0.25", 1, number, 4 * slow, 6, 1.4)]
        cells += [cell(STOCK, 8, number, 4 * slow, 160), cell("hiprune 0.25", 8, number, 5 * slow, 48, 1.5)]
    return cells


def test_ratios_are_taken_within_a_round():
    """The machine's change of speed shows in the rates and not in the ratios."""
    stock, alone, _, eight = summary(two_rounds())
    assert (alone["system"], alone["concurrency"], eight["system"]) == ("hiprune 0.25", 1, "hiprune 0.25")
    assert stock["rate"] == {"median": 0.9375, "min": 0.625, "max": 1.25}
    assert "ratios" not in stock
    assert alone["ratios"]["rate"] == {"median": 2.0, "min": 2.0, "max": 2.0}
    assert eight["ratios"]["rate"]["median"] == pytest.approx(0.8)
    assert eight["ratios"]["blocks"]["median"] == pytest.approx(0.3)
    assert alone["choosing"]["max"] == pytest.approx(0.4 / 4)
    assert eight["choosing"] is None  # other numbers of images in a step
    assert "choosing takes 7.5% of the time" in lines(two_rounds(), 2)[1]


def test_rounds_without_their_stock_cell_are_left_out():
    """A run that was stopped after the strategy's cell has one ratio less."""
    cells = [c for c in two_rounds() if (c["system"], c["round"]) != (STOCK, 1)]
    assert summary(cells)[1]["ratios"]["rate"]["median"] == 2.0
    alone = [c for c in cells if c["system"] != STOCK]
    assert summary(alone)[0]["ratios"]["rate"] is None
    assert lines(alone, 2) == []


def test_slower_is_said():
    """The line names the concurrency at which pruning costs speed; preempted requests are told."""
    cells = two_rounds()
    assert "hiprune 0.25: slower than unpruned at 8 at once" in lines(cells, 2)[0]
    assert "never slower" in lines([c for c in cells if c["concurrency"] == 1], 2)[0]
    cells[0]["preempted"] = 3
    assert f"lost their KV blocks: {STOCK} at 1" in lines(cells, 2)[-1]
    cells[0]["load"] = 7.0
    assert lines(cells, 2)[-1].startswith("noisy: up to 7.0 processes wanted to run on 2 cores")
    assert not lines(cells, 8)[-1].startswith("noisy")


def test_picture(tmp_path):
    """A panel for each quantity, drawn."""
    file = plot(two_rounds(), tmp_path)
    with Image.open(file) as image:
        assert image.format == "PNG"
        assert image.width > 3 * image.height
        assert len(image.convert("RGB").getcolors(maxcolors=10**6)) > 50


def test_no_encoder_times_no_share():
    """On a GPU there are no seconds of the encoder, and nothing is said of choosing."""
    cells = [c | {"encoder": None} for c in two_rounds()]
    assert summary(cells)[1]["choosing"] is None
    assert len(lines(cells, 2)) == 1


def store(folder: Path, torch: str = "1", **more) -> Results:
    """The folder's results, of an environment with one entry."""
    return Results(SERVING, folder, SETTINGS, {"torch": torch, "cores": 2}, **more)


def saved(folder: Path, cells: list[dict], keep: str = "0.25") -> Path:
    """A folder with these cells."""
    results = Results(SERVING, folder, {**SETTINGS, "keep": keep}, {"torch": "1", "cores": 2}, command="vtc bench")
    for found in cells:
        results.add(found)
    return folder


def test_store_goes_on(tmp_path):
    """Cells are read back; one of a strategy that has changed is measured again; other settings are refused in one
    line, unless they are to be overwritten."""
    first = store(tmp_path)
    for found in two_rounds()[:3]:
        first.add(found)
    again = store(tmp_path)
    assert again.rows == two_rounds()[:3]
    assert again.has(("hiprune 0.25", 1, 0), None)
    assert not again.has(("hiprune 0.25", 8, 0), None)
    assert not again.has(("hiprune 0.25", 1, 0), {"alpha": 0.2})
    assert len(again.rows) == 2
    with pytest.raises(ConfigError, match="torch 1 and 2; possible: another folder, or --overwrite"):
        store(tmp_path, "2")
    assert store(tmp_path, "2", overwrite=True).rows == []


def test_the_file_says_how_it_was_made(tmp_path):
    """The command, the figures' definitions, and the ratios that the rows give."""
    data = json.loads((saved(tmp_path, two_rounds()) / FILE).read_text())
    assert data["command"] == "vtc bench"
    assert data["definitions"]["blocks"].startswith("most KV blocks")
    assert data["ratios"] == json.loads(json.dumps(summary(data["rows"])))


def test_store_refuses_other_files(tmp_path):
    """A results.json of something else is not overwritten."""
    (tmp_path / FILE).write_text(json.dumps({"schema": "vtc.bench/1"}))
    with pytest.raises(ConfigError, match="is damaged: schema='vtc.bench/1'; possible: 'vtc.bench.serving/1'"):
        store(tmp_path)


def test_compare(capsys, tmp_path):
    """Two folders side by side, whatever their keep; other rounds or concurrencies are named and refused."""
    a = saved(tmp_path / "a", two_rounds())
    other = [c | {"system": c["system"].replace("hiprune 0.25", "divprune 0.1")} for c in two_rounds()]
    b = saved(tmp_path / "b", other, "0.1")
    code, shown, _ = cli(capsys, "bench", "compare", a, b)
    assert code == 0
    assert (shown.count("unpruned"), shown.count("hiprune 0.25"), shown.count("divprune 0.1")) == (4, 2, 2)
    alone = saved(tmp_path / "alone", [c for c in other if c["concurrency"] == 1])
    code, _, err = cli(capsys, "bench", "compare", a, alone)
    assert (code, "requests at once [1, 8] and [1]" in err) == (2, True)
    with pytest.raises(ConfigError, match=r"rounds \[1, 2\] and \[1\]"):
        check_comparable(SERVING, read(a, SERVING), read(saved(tmp_path / "c", two_rounds()[:4]), SERVING))


def test_results_of_two_benchmarks_are_not_compared(capsys, tmp_path):
    """Refused in one line."""
    empty = {"schema": SPEED.schema, "settings": {}, "environment": {}, "rows": []}
    (tmp_path / FILE).write_text(json.dumps(empty))
    code, _, err = cli(capsys, "bench", "compare", saved(tmp_path / "a", two_rounds()), tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "are of two benchmarks; possible: two folders of one" in err


def test_command(capsys, tmp_path, monkeypatch):
    """`vtc bench serving` hands its options on, and shows what was measured."""
    asked = []

    def measured(wanted, command, overwrite):
        asked.append((wanted, command, overwrite))
        results = store(wanted.output)
        results.rows = two_rounds()
        return results

    monkeypatch.setattr("vtc.bench.serving.throughput.run", measured)
    command = ("bench", "serving", "--strategies", "hiprune", "--concurrency", "1,8", "--threads", "1", "--output")
    code, shown, err = cli(capsys, *command, tmp_path / "out")
    assert (code, err) == (0, "")
    assert "hiprune 0.25: slower than unpruned at 8 at once" in shown
    assert (tmp_path / "out" / "serving.png").is_file()
    assert asked[0][0] == ServingOptions(tmp_path / "out", ("hiprune",), concurrency=(1, 8), threads=1)
    code, _, err = cli(capsys, "bench", "serving", "--rounds", "0", "--output", tmp_path)
    assert (code, "--rounds 0 is out of range" in err) == (2, True)


@pytest.mark.parametrize(
    "wrong, text",
    [
        ({"rounds": 0}, "--rounds 0 is out of range; possible: 1 or more"),
        ({"text": 2}, "--text 2 is out of range; possible: 3 or more"),
        ({"dtype": "int8"}, "--dtype 'int8' is unknown; possible: float32"),
    ],
)
def test_bad_options(tmp_path, wrong, text):
    """One line with what is possible."""
    with pytest.raises(ConfigError, match=text):
        ServingOptions(tmp_path, **wrong)


def test_bad_preset_comes_first(tmp_path):
    """Before anything is written or started."""
    with pytest.raises(ConfigError, match="unknown preset 'tinny': did you mean 'tiny'"):
        run(ServingOptions(tmp_path / "out", preset="tinny"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "part, text",
    [
        ({"served": None}, "llava has no pruned form in vLLM; possible: tiny,"),
        ({}, "llava has no processor; possible: tiny,"),
    ],
)
def test_why_a_preset_cannot_be_served(monkeypatch, part, text):
    """A family without a class for vLLM, a preset without a processor."""
    preset = Preset(presets()["tiny"].config, 1, "bare")
    monkeypatch.setattr(FAMILIES["llava"], "presets", {**FAMILIES["llava"].presets, "bare": preset})
    for name, value in part.items():
        monkeypatch.setattr(FAMILIES["llava"], name, value)
    with pytest.raises(ConfigError, match=f"--preset 'bare' cannot be served: {text}"):
        served("bare")


def test_without_torchvision(monkeypatch):
    """Qwen's processor has a video part that needs it: one line."""
    monkeypatch.setattr("vtc.patches.qwen2_vl.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="'qwen2.5-vl-3b' cannot be served: Qwen2_5_VLProcessor needs torchvision"):
        served("qwen2.5-vl-3b")


def test_what_tiled_pictures_come_to():
    """A picture of four tiles and the base crop, a token at the end of each row of tiles; as vLLM is told."""
    model = served("llava-next-7b")
    assert model.visual == 576 + 48 * 49
    (prompt,) = requests(model.prompt, 1, 10, (0,))
    assert prompt["multi_modal_data"]["image"].size == (672, 672)
    assert engine_options(ServingOptions(Path("out")), model)["max_model_len"] > 2928 + 64


@pytest.mark.parametrize("name", [name for name in presets() if "qwen2" in name])
def test_marked_pictures(monkeypatch, name):
    """A picture stands between its marks, which count as text; no random word is a special token. The processor's
    video part is left out here."""
    monkeypatch.setattr("vtc.patches.qwen2_vl.find_spec", lambda name: True)
    kind = PROCESSOR_MAPPING_NAMES[config_of(name).model_type]
    parts = {kind: pictures_only(getattr(transformers, kind)), "Qwen2VLVideoProcessor": lambda **sizes: None}
    for part, value in {**parts, "Qwen2VLImageProcessor": image_processor("Qwen2VLImageProcessor")}.items():
        monkeypatch.setattr(f"transformers.{part}", value)
    model = served(name)
    assert model.visual == 24 * 24
    (prompt,) = requests(model.prompt, 1, 64, (0,))
    ids, config = prompt["prompt_token_ids"], model.config
    assert len(ids) == 64 + 1
    place = ids.index(config.image_token_id)
    assert ids[place - 1 : place + 2] == [
        config.vision_start_token_id,
        config.image_token_id,
        config.vision_end_token_id,
    ]
    assert max(ids[: place - 1] + ids[place + 2 :]) < config.text_config.bos_token_id
    inputs = model.processor(text="<s> <image> <4>", images=prompt["multi_modal_data"]["image"], return_tensors="pt")
    assert (inputs["input_ids"] == config.image_token_id).sum() == model.visual


def test_without_vllm(tmp_path, monkeypatch):
    """One line that says how to get it."""
    monkeypatch.setattr("vtc.bench.serving.throughput.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="vLLM is not installed; possible: pip install"):
        run(ServingOptions(tmp_path, preset="tiny"))


def test_room_for_all_requests(tmp_path):
    """The KV cache holds the most requests at once unpruned, whole blocks each."""
    model = served("tiny")
    wanted = ServingOptions(tmp_path, concurrency=(1, 8), text=60, new_tokens=5)
    options = engine_options(wanted, model)
    bytes_of_block = 32 * kv_bytes(model.config, torch.float32)
    assert kv_bytes(model.config, torch.float32) == 2 * 8 * 384 * 4  # keys and values, layers, width
    assert options["kv_cache_memory_bytes"] // bytes_of_block >= 8 * 21  # 576 + 60 + 5 tokens are 20.03 blocks
    assert options["max_model_len"] >= 576 + 60 + 5


def test_requests_differ_and_repeat():
    """The same seed gives the same prompts; within a cell and between cells no picture comes twice."""
    model = served("tiny")
    first, again, other = (list(requests(model.prompt, 3, 64, seed)) for seed in ((0, 0, 8), (0, 0, 8), (0, 1, 8)))
    pictures = [p["multi_modal_data"]["image"].tobytes() for p in first + other]
    assert len(set(pictures)) == 6
    assert [p["prompt_token_ids"] for p in first] == [p["prompt_token_ids"] for p in again]
    assert pictures[:3] == [p["multi_modal_data"]["image"].tobytes() for p in again]
    for prompt in first:
        assert len(prompt["prompt_token_ids"]) == 64 + 1
        assert prompt["prompt_token_ids"].count(model.config.image_token_id) == 1


@pytest.mark.slow
def test_saved_model(tmp_path):
    """The folder loads in transformers with its processor; an image has the placeholders that are counted on."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    preset = served("tiny")
    count = save(preset, tmp_path, torch.float32, 0)
    model, report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert sum(p.numel() for p in model.parameters()) == count == 39_954_048
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    (prompt,) = requests(preset.prompt, 1, 64, (0,))
    processor = AutoProcessor.from_pretrained(tmp_path)
    inputs = processor(text="<s> <image> <4>", images=prompt["multi_modal_data"]["image"], return_tensors="pt")
    assert (inputs["input_ids"] == preset.config.image_token_id).sum() == preset.visual == 576
