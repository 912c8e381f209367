"""`vtc inspect` of a clip: frames as they were given, counts of each frame, flows between frames, and records."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers.video_utils import VideoMetadata

import vtc
from tests.helpers import model_of, refused, state
from tests.helpers_checkpoints import save_tiny
from tests.test_inspect_draw import Page, command
from vtc.eval import models
from vtc.eval.inspect.draw import draw
from vtc.eval.inspect.filmstrip import clip_prompt, shown_frames
from vtc.eval.inspect.look import configs_of, look
from vtc.eval.inspect.opening import open_frames
from vtc.eval.inspect.page import page
from vtc.eval.inspect.paint import enlarge, paint
from vtc.eval.inspect.record import DROPPED, across, frames_of, outcomes, read
from vtc.eval.inspect.write import show, write
from vtc.patching import find_family

NASTY = 'What is <script>alert("1")</script> & "that" in $x$?'
STRATEGIES = ("divprune", "pool", "uniform+fastv")


class HandBuiltVideos:
    """A clip's patches from the image processor's, which has no need of torchvision: two frames in each patch."""

    temporal_patch_size = 2

    def __init__(self, images):
        self.images, self.merge_size = images, images.merge_size

    def __call__(self, videos, video_metadata=None, **_):
        """One clip."""
        frames = [*videos[0], *videos[0][-1:]][: 2 * -(-len(videos[0]) // 2)]
        made = [self.images(frame, return_tensors="pt") for frame in frames]
        pairs = [m["pixel_values"].unflatten(1, (3, 2, -1)) for m in made]
        joined = [torch.stack([a[:, :, 0], b[:, :, 0]], 2).flatten(1) for a, b in zip(pairs[::2], pairs[1::2])]
        grid = [[len(joined), *made[0]["image_grid_thw"][0].tolist()[1:]]]
        about = [VideoMetadata(**one) for one in video_metadata]
        return {"pixel_values_videos": torch.cat(joined), "video_grid_thw": torch.tensor(grid), "video_metadata": about}


def frames_with(colors, size=(60, 40)):
    """A plain frame of each color."""
    return [Image.new("RGB", size, color) for color in colors]


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def loaded(request, tmp_path_factory):
    """A tiny model whose processor can build clips."""
    found = models.load(str(save_tiny(request.param, tmp_path_factory.mktemp(request.param))), {}, "cpu")
    template = found.processor.chat_template
    place = "<|vision_start|><|video_pad|><|vision_end|>" if request.param == "qwen2_5_vl" else "<|video_pad|>"
    clip = "{% elif part.type == 'video' %}" + place
    found.processor.chat_template = template.replace("{% else %}", clip + "{% else %}", 1)
    found.processor.video_processor = HandBuiltVideos(found.processor.image_processor)
    return found


@pytest.fixture(scope="module")
def seen(loaded):
    """The record of three strategies on five frames, which the encoder joins to three."""
    frames = frames_with(["#102030", "#405060", "#a0b0c0", "#d0e0f0", "#ff8000"])
    for i, frame in enumerate(frames):
        ImageDraw.Draw(frame).ellipse((5 * i, 5, 5 * i + 20, 25), fill="white")
    loaded.answer(clip_prompt(loaded, frames, "?")[0], 1)  # transformers leaves hooks of its own behind
    before = state(loaded.model)
    configs = configs_of(loaded.family, STRATEGIES, ["0.4"], {})
    record, sheet = look(loaded, frames, NASTY, configs, 3, source="clip & more")
    assert state(loaded.model) == before
    return frames, record, sheet


def test_views_are_the_frames(loaded, seen):
    """A white token's box in one pair of frames makes the pixels of that place of the clip the brightest."""
    _, record, _ = seen
    assert [view["name"] for view in record["views"]] == ["frame 0", "frame 1", "frame 2"]
    assert record["picture"] == {"source": "clip & more", "width": 60, "height": 40, "frames": 3, "pictures": 5}
    assert sorted(i for view in record["views"] for i in view["offsets"]) == list(range(record["tokens"]))
    for number, view in enumerate(record["views"]):
        place, box = view["offsets"][4], [round(x) for x in view["boxes"][4]]
        frames = frames_with(["black"] * 5)
        for frame in frames[2 * number : 2 * number + 2]:
            ImageDraw.Draw(frame).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill="white")
        inputs, layout = clip_prompt(loaded, frames, "?")
        tokens = inputs["pixel_values_videos"].mean(1).unflatten(0, (-1, 4)).mean(1)
        assert (layout.frames, layout.tokens) == (3, len(tokens))
        assert int(tokens.argmax()) == place


def test_record_agrees_with_the_report(loaded, seen):
    """Counts and places are those of vtc's own report on the same clip, and frames' counts add up to them."""
    frames, record, sheet = seen
    inputs, _ = clip_prompt(loaded, frames, NASTY)
    words = [text.get_text() for text in draw(record, sheet).texts]
    for run in record["runs"]:
        with vtc.patched(loaded.model, run["resolved"]):
            loaded.answer(inputs, 3)
            (image,) = vtc.report(loaded.model).images
        assert image.before == record["tokens"]
        for step, reported in zip(run["steps"], image.steps, strict=True):
            assert step["kept"] == reported.kept.tolist()
        for step in run["steps"]:
            for view in record["views"]:
                stay = len(set(step["kept"]) & set(view["offsets"]))
                assert f"{view['name']}: {stay} of {len(view['offsets'])}" in words


def test_a_run_without_steps_says_so(seen):
    """In its row; the others are drawn as before."""
    _, record, sheet = seen
    kept = {**record, "runs": [{**record["runs"][0], "steps": []}, *record["runs"][1:]]}
    words = [text.get_text() for text in draw(kept, sheet).texts]
    assert (words.count("nothing is dropped here"), words.count("at the projector")) == (1, 2)


def test_pixels_are_those_of_the_frame(seen):
    """The sheet has the first picture of each pair; what a frame drops is dark, what it keeps is its own."""
    frames, record, sheet = seen
    drawn_on = frames_of(record, sheet)
    for number, frame in enumerate(drawn_on):
        assert (np.asarray(frame) == np.asarray(frames[2 * number])).all()
    (run,) = [run for run in record["runs"] if run["strategy"] == "divprune"]
    (outcome,) = outcomes(run, record["tokens"])
    assert (outcome.state == DROPPED).any()
    for view, frame in zip(record["views"], drawn_on):
        large = enlarge(frame, 600)
        plain, drawn = np.asarray(large, dtype=int), paint(large, record, view, outcome).astype(int)
        for place, box in zip(view["offsets"], view["boxes"]):
            x, y = (int(5 * (a + b)) for a, b in zip(box[:2], box[2:]))
            if outcome.state[place] == DROPPED:
                assert drawn[y, x].sum() <= plain[y, x].sum() * 0.3 + 100
            else:
                assert (drawn[y, x] == plain[y, x]).all()


@pytest.mark.parametrize("case, crop", [("llava_next_video", [20, 0, 80, 60]), ("llava_onevision", [0, 0, 100, 60])])
def test_frames_of_one_size(case, crop):
    """LLaVA's video families: a view of each frame, of its centre or stretched; nothing twice, newlines in none."""
    family = find_family(model_of(case))
    side = family.tower.config.image_size
    (layout,) = family.clip_layouts({"pixel_values": torch.zeros(1, 4, 3, side, side)})
    centred = dict(size={"shortest_edge": side}, do_center_crop=True, crop_size={"height": side, "width": side})
    views = family.views(SimpleNamespace(do_resize=True, **centred), (60, 100), layout)
    assert [view.name for view in views] == [f"frame {f}" for f in range(4)]
    assert torch.cat([view.offsets for view in views]).tolist() == list(range(layout.tokens - family.clip_end))
    for view in views:
        assert view.crops[0].tolist() == pytest.approx(crop, abs=0.7)
        assert [*view.boxes[0, :2].tolist(), *view.boxes[-1, 2:].tolist()] == pytest.approx(crop, abs=0.7)
    if case == "llava_next_video":
        centred["crop_size"] = {"height": side, "width": 2 * side}
        foreign = SimpleNamespace(do_resize=True, **centred)
        refused(lambda: family.views(foreign, (60, 100), layout), f"where the model saw {side} x {side}")


def hand_made() -> tuple[dict, Image.Image]:
    """Two frames of two tokens: one token flows to the other frame, one into a neighbour and to the other frame too."""
    boxes = [[0, 0, 10, 10], [10, 0, 20, 10]]
    step = {"stage": "m", "layer": None, "before": 4, "after": 2, "kept": [0, 3], "merged_into": [0, 0, 0, 3],
            "also_into": [[1, 3]]}  # fmt: skip
    views = [
        {"name": name, "offsets": offsets, "boxes": boxes, "crops": [[0, 0, 20, 10]]}
        for name, offsets in (("frame 0", [0, 1]), ("frame <1>", [2, 3]))
    ]
    run = {"strategy": "mine", "keep": None, "average": 2.0, "answer": "red", "notes": [], "steps": [step]}
    record = {
        "schema": "vtc.inspect/1", "created": "now", "versions": {}, "question": NASTY, "reference": None, "tokens": 4,
        "model": {"name": None, "family": "qwen3_vl", "layers": 8}, "full": {"answer": "red"}, "runs": [run],
        "picture": {"source": None, "width": 20, "height": 10, "frames": 2, "pictures": 4}, "views": views,
    }  # fmt: skip
    return record, Image.new("RGB", (20, 20), (250, 250, 250))


def test_flows_between_frames_are_listed():
    """By hand: both directions, with their numbers, in the figure and, escaped, on the page."""
    record, sheet = hand_made()
    (outcome,) = outcomes(record["runs"][0], 4)
    assert across(record, outcome) == [("frame 0", "frame <1>", 1), ("frame <1>", "frame 0", 1)]
    words = " ".join(" ".join(text.get_text() for text in draw(record, sheet).texts).split())
    assert "Between frames: frame 0 → frame <1> 1, frame <1> → frame 0 1" in words
    assert "frame 0: 1 of 2" in words
    text = page(record, sheet)
    assert "<li>frame 0 → frame &lt;1&gt;: 1 token</li>" in text
    record["runs"][0]["steps"][0] |= {"merged_into": [0, 0, 3, 3], "also_into": []}
    assert "between frames" not in page(record, sheet)


def test_saved_records_draw_the_same(seen, tmp_path):
    """Byte for byte, without the model; the page is well-formed and what users write is text."""
    _, record, sheet = seen
    write(record, sheet, tmp_path / "one")
    again, picture = read(tmp_path / "one")
    assert again == record
    show(again, picture, tmp_path / "two")
    for name in ("inspect.png", "inspect.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    text = (tmp_path / "one" / "inspect.html").read_text()
    built = Page(text)
    assert built.open == []
    assert "script" not in {tag for tag, _ in built.tags}
    assert NASTY in built.words
    drawings = [own for tag, own in built.tags if tag == "svg" and "aria-hidden" not in own]
    assert len(drawings) == 3 * sum(len(run["steps"]) for run in record["runs"])
    assert re.findall(r"\.frame-(\d+) \{ background-position: 0 ([\d.]+)%", text) == [
        ("1", "50.0000"),
        ("2", "100.0000"),
    ]
    assert "5 pictures as 3 frames" in text


@pytest.mark.parametrize("change", [{"frames": 3}, {"frames": 0}, {"frames": "two"}, {"pictures": None}], ids=str)
def test_damaged_records_are_refused(tmp_path, change):
    """Frames that are not those of the views, and sheets of another shape."""
    record, sheet = hand_made()
    write(record, sheet, tmp_path)
    read(tmp_path)
    record["picture"] |= change
    (tmp_path / "selection.json").write_text(json.dumps(record))
    refused(lambda: read(tmp_path), "picture")


def test_frames_of_a_folder(tmp_path):
    """By name, numbers as numbers; other files are left out."""
    for number in (10, 9, 1):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"f{number}.png")
    (tmp_path / "notes.txt").write_text("words")
    frames, name = open_frames(tmp_path)
    assert [frame.getpixel((0, 0))[0] for frame in frames] == [1, 9, 10]
    assert name == tmp_path.name
    assert [shown_frames(range(n), 2) for n in (2, 3, 4)] == [[0, 1], [0, 2], [0, 2]]


def test_bad_clips_are_one_line(capsys, tmp_path, monkeypatch):
    """What is wrong with the frames, a family without clips, a processor that cannot build one."""
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "mixed", "good"):
        (tmp_path / name).mkdir()
    for number, side in enumerate((8, 9)):
        Image.new("RGB", (side, 8)).save(tmp_path / "mixed" / f"{number}.png")
        Image.new("RGB", (8, 8)).save(tmp_path / "good" / f"{number}.png")
    save_tiny("qwen3_vl", tmp_path / "model")
    capsys.readouterr()
    asked = ("--question", "?", "--frames")
    for given, said in (
        ((*asked, "nowhere"), "--frames 'nowhere' is no folder"),
        ((*asked, "empty"), "holds no pictures"),
        ((*asked, "mixed"), "'1.png' has 9 x 8 pixels, the first one 8 x 8"),
        ((*asked, "good"), "llava takes no clips"),
        ((*asked, "good", "--image", "good/0.png"), "--image is not for --frames"),
        ((*asked, "good", "--sample", 3), "--sample is not for --frames"),
        ((*asked[2:], "good"), "--question is missing"),
        ((*asked, "good", "--model", "model"), "possible: pip install torchvision"),
    ):
        code, _, err = command(capsys, *given)
        assert (code, err.count("\n")) == (2, 1), err
        assert said in err
        assert "possible" in err


def test_from_python(loaded):
    """A list of pictures is a clip."""
    figure = vtc.inspect(loaded.model, loaded.processor, frames_with(["black", "white"]), "?", "divprune", keep=0.5)
    assert "frame 0" in " ".join(text.get_text() for text in figure.texts)
    refused(lambda: vtc.inspect(loaded.model, loaded.processor, [], "?"), "no frames", kind=vtc.ConfigError)


@pytest.mark.parametrize("loaded", ["qwen2_5_vl"], indirect=True)
def test_a_clip_of_the_image_processor(loaded, seen, monkeypatch):
    """Qwen2.5-VL needs no video processor; the record is the one that it gives with one."""
    monkeypatch.delattr(loaded.processor, "video_processor")
    configs = configs_of(loaded.family, STRATEGIES[:1], ["0.4"], {})
    record, sheet = look(loaded, seen[0], NASTY, configs, 3)
    assert (record["views"], record["runs"]) == (seen[1]["views"], seen[1]["runs"][:1])
    assert sheet.tobytes() == seen[2].tobytes()
