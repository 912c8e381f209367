"""The page of `vtc report` in a real headless Chromium; without one these tests are skipped and say so."""

import pytest

from tests.helpers_browser import binary, browser
from tests.helpers_report import demo_job, made, over_tasks, sweep
from vtc.eval.report import report

pytestmark = pytest.mark.skipif(binary() is None, reason="no chromium on this machine: install the package chromium")

WIDTHS = (360, 1200)
# Of every element with text of its own: the contrast of the text to the first background behind it (WCAG 2).
CONTRASTS = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const channels = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = (colour) => {
    const [r, g, b] = [...channels(colour)].map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (channels(colour)[3] === 255) return colour;
    }
    return "rgb(0, 0, 0)";
  };
  const found = [];
  for (const one of document.querySelectorAll("body *")) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || ["SCRIPT", "STYLE", "title"].includes(one.tagName)) continue;
    const style = getComputedStyle(one);
    const text = one.tagName === "text" ? style.fill : style.color;
    const [a, b] = [light(text), light(behind(one))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), one.tagName, one.textContent.slice(0, 40)]);
  }
  return found;
})()"""
# What sticks out of the screen to the right, other than inside a box that scrolls.
OUTSIDE = """[...document.querySelectorAll("body *")].filter((one) => !one.closest(".scroll, pre, svg")
  && one.getBoundingClientRect().right > innerWidth + 0.5).map((one) => one.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """One browser for all tests of this file."""
    with browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Reports by name: of one task, of two tasks, of a sweep with a search."""
    place = tmp_path_factory.mktemp("pages")
    runs = {"none": 0.9, "hiprune-keep0.25": 0.88, "hiprune-keep0.1": 0.8, "uniform-keep0.25": 0.6,
            "uniform-keep0.1": 0.4, "random-keep0.25": 0.5, "downsample-keep0.25": 0.55}  # fmt: skip
    folders = {
        "one": made(place / "one", [demo_job(name, right, 40) for name, right in runs.items()]),
        "tasks": over_tasks(place / "tasks", 40),
        "sweep": sweep(place / "sweep", 4, 40),
    }
    return {name: report([folder])[0] for name, folder in folders.items()}


@pytest.mark.product
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["one", "tasks", "sweep"])
def test_page(chromium, pages, name, width, dark):
    """No complaint, no request, as wide as the screen with all folds open, text with a contrast of 4.5 or more."""
    chromium.open(pages[name], width, dark=dark)
    chromium.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert chromium.run("document.documentElement.scrollWidth") == width
    assert chromium.run(OUTSIDE) == []
    contrasts = chromium.run(CONTRASTS)
    assert len(contrasts) > 100
    assert [one for one in contrasts if one[0] < 4.5] == []
    assert chromium.complaints() == []
    assert chromium.requests() == [pages[name].resolve().as_uri()]


def test_dark_mode(chromium, pages):
    """The scheme of the system changes page, text and the colours of the plots."""
    looks = []
    for dark in (False, True):
        chromium.open(pages["one"], 1200, dark=dark)
        looks.append(
            chromium.run("""[getComputedStyle(document.body).backgroundColor,
            getComputedStyle(document.body).color, getComputedStyle(document.querySelector("svg text")).fill,
            getComputedStyle(document.querySelector("svg .s0 path, svg .s0 use")).stroke]""")
        )
    assert all(light != dark for light, dark in zip(*looks))


def test_every_plot_is_told_and_tabled(chromium, pages):
    """Each picture has a label that says its message, and a table with as many rows as it has points."""
    for name, page in pages.items():
        chromium.open(page, 1200)
        plots = chromium.run("""[...document.querySelectorAll("svg[role=img]")].map((svg) => [
            svg.getAttribute("aria-label"), svg.querySelectorAll(".p").length,
            svg.querySelectorAll(".p > title").length,
            svg.closest("figure").querySelectorAll("details tbody tr").length,
            svg.getBoundingClientRect().width])""")
        assert len(plots) >= (4 if name == "one" else 6)
        for label, points, titles, rows, width in plots:
            assert len(label) > 40
            assert titles == points
            assert rows >= max(points, 2)
            assert width > 300
        assert chromium.run("document.querySelectorAll('svg:not([role=img]):not([aria-hidden=true])').length") == 0


def test_legend_hides_and_shows(chromium, pages):
    """A click hides a method's points, bars and lines in all plots of its section, and no other method."""
    chromium.open(pages["one"], 1200)
    seen = """(series) => [...document.querySelectorAll(`svg .s${series}`)]
        .map((one) => one.getClientRects().length > 0)"""
    names = chromium.run("[...document.querySelectorAll('.key')].map((one) => one.textContent)")
    assert names == ["downsample (blur)", "hiprune", "random", "uniform"]
    shown = [chromium.run(f"({seen})({i})") for i in range(4)]
    assert all(all(one) and len(one) > 3 for one in shown)
    chromium.run("document.querySelectorAll('.key')[1].click()")
    assert not any(chromium.run(f"({seen})(1)"))
    assert [chromium.run(f"({seen})({i})") for i in (0, 2, 3)] == [shown[0], *shown[2:]]
    assert all(chromium.run(f"({seen})(999)"))
    assert chromium.run("document.querySelectorAll('.key')[1].getAttribute('aria-pressed')") == "false"
    chromium.run("document.querySelectorAll('.key')[1].click()")
    assert chromium.run(f"({seen})(1)") == shown[1]
    chromium.run("document.querySelector('.all[data-all=\"\"]').click()")
    assert not any(any(chromium.run(f"({seen})({i})")) for i in range(4))
    chromium.run("document.querySelector('.all[data-all=\"1\"]').click()")
    assert [chromium.run(f"({seen})({i})") for i in range(4)] == shown
    assert chromium.complaints() == []


def test_legend_brings_out(chromium, pages):
    """Resting on a button fades the other methods, not this one and not the full model."""
    chromium.open(pages["one"], 1200)
    opacity = "(series) => getComputedStyle(document.querySelector(`svg .s${series}`)).opacity"
    chromium.run("document.querySelectorAll('.s').forEach((one) => { one.style.transition = 'none'; })")
    chromium.run("document.querySelectorAll('.key')[1].dispatchEvent(new MouseEvent('mouseenter'))")
    assert [chromium.run(f"({opacity})({i})") for i in (0, 1, 999)] == ["0.12", "1", "1"]
    chromium.run("document.querySelectorAll('.key')[1].dispatchEvent(new MouseEvent('mouseleave'))")
    assert chromium.run(f"({opacity})(0)") == "1"


def test_legends_of_sections_are_apart(chromium, pages):
    """A click in one section leaves the plots of another as they are."""
    chromium.open(pages["sweep"], 1200)
    count = "[...document.querySelectorAll('section')].map((one) => one.querySelectorAll('svg .off').length)"
    before = chromium.run(count)
    chromium.run("document.querySelector('.key').click()")
    after = chromium.run(count)
    assert sum(a != b for a, b in zip(before, after)) == 1
