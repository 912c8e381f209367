"""The page of `vtc inspect` in a real browser: wide, on a phone, light and dark."""

import pytest
from PIL import Image

from tests.helpers_browser import binary, browser
from tests.helpers_checkpoints import save_tiny
from vtc.eval import models
from vtc.eval.inspect.look import configs_of, look
from vtc.eval.inspect.write import show

QUESTION = "A rather long question, " * 6 + "w" * 70 + " <b>& so on</b>?"
# What each picture has: its shape on the screen beside the shape that it should have, and how much of it is drawn over.
PICTURES = """[...document.querySelectorAll('figure .view')].map(v => {
  const a = v.getBoundingClientRect(), b = v.querySelector('svg').getBoundingClientRect();
  return [a.width / a.height, b.width / a.width, b.height / a.height, a.width, v.querySelectorAll('path').length]; })"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    """A tab of a browser."""
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.mark.skipif(binary() is None, reason="no Chromium is installed")
@pytest.mark.parametrize("strategies", [("hiprune+fastv", "visionzip"), ("hiprune", "pool", "random")], ids=str)
def test_page_in_a_browser(tab, tmp_path, strategies):
    """No complaint, no request but for the file, nothing wider than the screen, whole pictures, colours of the mode."""
    loaded = models.load(str(save_tiny("llava_next", tmp_path / "model")), {}, "cpu")
    picture = Image.effect_noise((160, 90), 90).convert("RGB")
    record, shown = look(loaded, picture, QUESTION, configs_of(loaded.family, strategies, ["0.3"], {}), 4)
    page = show(record, shown, tmp_path)[1]
    for width, dark in ((1300, False), (390, True)):
        tab.open(page, width, dark=dark)
        assert tab.complaints() == []
        assert [url for url in tab.requests() if not url.startswith("data:")] == [page.resolve().as_uri()]
        assert tab.run("document.documentElement.scrollWidth") <= width
        assert tab.run("document.querySelector('h1').textContent") == QUESTION
        shapes = tab.run(PICTURES)
        assert len(shapes) == 2 * sum(len(run["steps"]) for run in record["runs"])
        for shape, across, down, wide, paths in shapes:
            assert shape == pytest.approx(160 / 90, rel=0.02)
            assert (across, down) == pytest.approx((1, 1))
            assert wide > 100
            assert paths > 0
        ink, paper = tab.run("[getComputedStyle(document.body).color, getComputedStyle(document.body)."
                             "backgroundColor].map(c => +c.match(/\\d+/)[0])")  # fmt: skip
        assert (ink > 200 > 100 > paper) if dark else (ink < 100 < 200 < paper)
