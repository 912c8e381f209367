"""`vtc inspect` from end to end: records that agree with reports, the same pictures from saved records, a page that is
well-formed, and one line for bad input."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import vtc
import vtc.demo.benchmark
from tests.helpers import refused, state
from tests.helpers_checkpoints import save_tiny
from vtc.cli import main
from vtc.eval import models
from vtc.eval.inspect.draw import draw
from vtc.eval.inspect.look import configs_of, look
from vtc.eval.inspect.page import page
from vtc.eval.inspect.paint import enlarge, paint
from vtc.eval.inspect.record import DROPPED, GONE, MERGED, outcomes, read
from vtc.eval.inspect.write import show, write
from vtc.patches import FAMILIES

STRATEGIES = ("hiprune", "visionzip", "uniform+fastv", "visiondrop", "tome")
NASTY = 'What is <script>alert("1")</script> & "that" in $x$?'
VOID = {"meta", "link", "rect", "path", "br", "img"}


def strategies_of(family) -> tuple[str, ...]:
    """Four or five, at the sites that the family has; the last of five acts inside the encoder."""
    if "decoder" in family.refuses:
        return ("hiprune", "visionzip", "uniform", "pool")
    return STRATEGIES[: 4 if "encoder" in family.refuses else 5]


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request, tmp_path_factory):
    """A tiny model with its processor, a picture that is not square, and the record of five strategies."""
    loaded = models.load(str(save_tiny(request.param, tmp_path_factory.mktemp(request.param))), {}, "cpu")
    across, down = (Image.linear_gradient("L").rotate(turn).resize((150, 100)) for turn in (0, 90))
    picture = Image.merge("RGB", (across, down, across))
    loaded.answer(loaded.encode(["?"], [[picture]]), 1)  # transformers leaves hooks of its own behind at the first call
    before = state(loaded.model)
    configs = configs_of(loaded.family, strategies_of(loaded.family), ["0.5"], {})
    record, shown = look(loaded, picture, NASTY, configs, 3, source="noise & more.png")
    assert state(loaded.model) == before
    return loaded, picture, record, shown


def test_record_agrees_with_the_report(family):
    """Counts and places are those of vtc's own report on the same prompt, and what the pictures show adds up."""
    loaded, picture, record, _ = family
    tokens = record["tokens"]
    inputs = loaded.encode([NASTY], [[picture]])
    assert tokens == loaded.visual_tokens(inputs)[0]
    assert [run["strategy"] for run in record["runs"]] == list(strategies_of(loaded.family))
    for run in record["runs"]:
        with vtc.patched(loaded.model, run["resolved"]):
            answer = loaded.answer(inputs, 3)
            image, report = vtc.report(loaded.model).images[0], vtc.report(loaded.model)
        assert run["answer"] == loaded.processor.batch_decode(answer, skip_special_tokens=True)[0].strip()
        assert (run["average"], run["last"], run["keep"]) == (report.average_tokens, image.after, 0.5)
        assert [(s["stage"], s["before"], s["after"]) for s in run["steps"]] == image.stages
        left = tokens
        for step, reported, outcome in zip(run["steps"], image.steps, outcomes(run, tokens), strict=True):
            assert step["kept"] == reported.kept.tolist()
            cls = len(outcome.summaries) if step["layer"] is None else 0
            assert step["before"] == left == step["after"] - cls + outcome.merged + outcome.dropped
            gone = int((outcome.state == GONE).sum() + (outcome.state == DROPPED).sum())
            held = int(np.isin(outcome.into, step["kept"]).sum())
            assert gone + held == tokens
            left = step["after"]


def test_saved_records_draw_the_same(family, tmp_path):
    """selection.json and picture.png give the same figure and page, byte for byte, as the model's own run."""
    _, _, record, shown = family
    paths = write(record, shown, tmp_path / "one")
    assert [path.name for path in paths] == ["selection.json", "picture.png", "inspect.png", "inspect.html"]
    again, picture = read(tmp_path / "one" / "selection.json")
    assert again == record
    show(again, picture, tmp_path / "two")
    for name in ("inspect.png", "inspect.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert read(tmp_path / "one")[0] == record


def test_pixels_say_what_became_of_a_token(family):
    """A token that stays is the picture's own in its middle, one that is dropped is dark, one that merged is tinted."""
    _, _, record, shown = family
    large = enlarge(shown, 600)
    plain = np.asarray(large, dtype=int)
    scale = np.array([large.width / record["picture"]["width"], large.height / record["picture"]["height"]])
    for run in record["runs"]:
        for outcome in outcomes(run, record["tokens"]):
            for view in record["views"]:
                drawn = paint(large, record, view, outcome).astype(int)
                for place, box in zip(view["offsets"], view["boxes"]):
                    x, y = ((np.array(box[:2]) + np.array(box[2:])) / 2 * scale).astype(int)
                    x, y = x + 2, y  # beside the lines between tiles and the crosses of [CLS]
                    kind, before, after = outcome.state[place], plain[y, x], drawn[y, x]
                    if place in outcome.summaries:
                        continue
                    if kind in (GONE, DROPPED):
                        assert after.sum() <= before.sum() * 0.3 + 100
                    elif kind == MERGED:
                        assert (after != before).any()
                    else:
                        assert (after == before).all()


class Page(HTMLParser):
    """Tags that are open and closed in turn, and the words between."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_page(family, tmp_path):
    """Every tag is closed, nothing is loaded, what users write is text, every picture has words for it, numbers are in
    a table."""
    _, _, record, shown = family
    text = show(record, shown, tmp_path)[1].read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert "script" not in {tag for tag, _ in page.tags}
    assert NASTY in page.words
    assert not re.search(r"https?://", text)
    drawings = [own for tag, own in page.tags if tag == "svg" and "aria-hidden" not in own]
    assert len(drawings) == len(record["views"]) * sum(len(run["steps"]) for run in record["runs"])
    assert all(own["role"] == "img" and "stay" in own["aria-label"] for own in drawings)
    assert "prefers-color-scheme: dark" in text
    assert "viewport" in [own.get("name") for tag, own in page.tags if tag == "meta"]
    assert "max-width: 46rem" in text
    cells = [own for tag, own in page.tags if tag == "td"]
    assert len(cells) == 9 * sum(len(run["steps"]) for run in record["runs"])


def test_from_python_leaves_everything_as_it_was():
    """A figure comes back, the user's own patch is still there and had no part in it, the processor is untouched."""
    model, processor = vtc.demo.load()
    processor.tokenizer.padding_side = "right"
    scene = vtc.demo.benchmark.sample("test", 21)
    vtc.inspect(model, processor, scene["image"], scene["question"])  # transformers' own hooks, see above
    before = state(model)
    figure = vtc.inspect(model, processor, scene["image"], scene["question"], ["hiprune", "random"], keep=0.11)
    assert state(model) == before
    assert processor.tokenizer.padding_side == "right"
    assert figure._repr_png_().startswith(b"\x89PNG")
    words = " ".join(text.get_text() for text in figure.texts)
    assert "hiprune" in words
    assert "random" in words
    assert "22 of 196 stay" in words
    vtc.patch(model, "uniform", keep=4)
    own = vtc.inspect(model, processor, scene["image"], scene["question"], ["hiprune", "random"], keep=0.11)
    assert [text.get_text() for text in own.texts] == [text.get_text() for text in figure.texts]
    refused(lambda: vtc.report(model), "no image was seen")
    vtc.unpatch(model)
    assert state(model) == before


def test_one_that_keeps_everything():
    """keep=1.0 has no stage: its row says so, and its answer is the full model's."""
    loaded = models.load("demo", {}, "cpu")
    scene = vtc.demo.benchmark.sample("test", 0)
    configs = configs_of(loaded.family, ["uniform"], [1.0], {})
    record, shown = look(loaded, scene["image"], scene["question"], configs)
    (run,) = record["runs"]
    assert (run["steps"], run["average"], run["answer"]) == ([], 196.0, record["full"]["answer"])
    assert "nothing is dropped here" in [text.get_text() for text in draw(record, shown).texts]
    assert "at the projector: nothing is dropped here" in page(record, shown)


def command(capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `vtc inspect`."""
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", *map(str, arguments)])
    out, err = capsys.readouterr()
    return stopped.value.code, out, err


def test_command(capsys, tmp_path):
    """The demo's own picture and a file's; --from draws again and needs no model."""
    code, out, _ = command(
        capsys, "--strategy", "hiprune,random", "--keep", "0.11", "--sample", 21, "--output", tmp_path
    )
    assert code == 0
    assert str(tmp_path / "inspect.png") in out
    record = json.loads((tmp_path / "selection.json").read_text())
    assert record["reference"] == record["full"]["answer"] == "red"
    first = {name: (tmp_path / name).read_bytes() for name in ("inspect.png", "inspect.html")}
    other = tmp_path / "other"
    assert command(capsys, "--from", tmp_path / "selection.json", "--output", other)[0] == 0
    assert {name: (other / name).read_bytes() for name in first} == first
    asked = ("--image", tmp_path / "picture.png", "--question", record["question"], "--strategy", "hiprune,random")
    assert command(capsys, *asked, "--keep", "0.11", "--output", other)[0] == 0
    again = json.loads((other / "selection.json").read_text())
    assert again["runs"] == record["runs"]
    assert again["reference"] is None


BAD = {
    "missing file": (("--image", "no.png", "--question", "?"), "'no.png' does not exist"),
    "no picture": (("--image", "text.png", "--question", "?"), "no picture"),
    "cut file": (("--image", "cut.png", "--question", "?"), "damaged"),
    "folder": (("--image", ".", "--question", "?"), "cannot be opened"),
    "no question": (("--image", "good.png"), "--question is missing"),
    "strategy": (("--strategy", "hipruen"), "hiprune"),
    "none": (("--strategy", "none"), "full model is always asked"),
    "keep": (("--keep", "1.5"), "1.5"),
    "keep count": (("--keep", "500"), "196"),
    "knob": (("--set", "alhpa=1"), "alpha"),
    "set keep": (("--set", "keep=0.1"), "--keep"),
    "model": (("--model", "nowhere", "--image", "good.png", "--question", "?"), "does not exist"),
    "image for a model": (("--model", ".", "--question", "?"), "--image is missing"),
    "sample and image": (("--sample", "1", "--image", "good.png", "--question", "?"), "--sample"),
    "from nothing": (("--from", "no.json"), "does not exist"),
    "from other JSON": (("--from", "other.json"), "schema"),
    "from damaged": (("--from", "damaged.json"), "damaged"),
    "from with options": (("--from", "other.json", "--keep", "0.5"), "--keep"),
    "output": (("--sample", "0", "--output", "good.png"), "cannot be written"),
}


@pytest.mark.parametrize("given, said", BAD.values(), ids=BAD)
def test_bad_input_is_one_line(capsys, tmp_path, monkeypatch, given, said):
    """Exit code 2, and a line that names what was wrong."""
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((60, 60), 90).save("good.png")
    (tmp_path / "text.png").write_text("words")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:1500])
    (tmp_path / "other.json").write_text('{"schema": "vtc.eval.run/3"}')
    (tmp_path / "damaged.json").write_text('{"schema": "vtc.inspect/1", "tokens": 4}')
    code, _, err = command(capsys, *given)
    assert code == 2
    assert err.count("\n") == 1, err
    assert said in err


def test_a_model_of_another_family_is_refused():
    """One line, before anything is run."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, vocab_size=16)
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    picture = Image.new("RGB", (8, 8))
    refused(lambda: vtc.inspect(model, None, picture, "?"), "llama", "llava", kind=vtc.UnsupportedError)
    model, processor = vtc.demo.load()
    refused(lambda: vtc.inspect(model, processor, 7, "?"), "int", kind=vtc.ConfigError)
    refused(lambda: vtc.inspect(model, processor, picture, "?", max_new_tokens=0), "0", kind=vtc.ConfigError)


@pytest.mark.parametrize("family", ["llava_next"], indirect=True)
@pytest.mark.parametrize(
    "where, value",
    [
        (("runs", 0, "steps", 0, "kept", 0), 10_000),
        (("runs", 0, "steps", 0, "after"), 3),
        (("views", 0, "boxes"), []),
        (("picture", "height"), 0),
        (("question",), None),
        (("tokens",), "many"),
    ],
    ids=str,
)
def test_damaged_records_are_refused(family, tmp_path, where, value):
    """Whatever drawing would stumble over is found when the record is read."""
    _, _, record, shown = family
    record = json.loads(json.dumps(record))
    inner = record
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    (tmp_path / "selection.json").write_text(json.dumps(record))
    shown.save(tmp_path / "picture.png")
    refused(lambda: read(tmp_path), "damaged")
