"""How often a patched forward makes the host wait for the device, counted on a device that is not there.

The budget, per prefill with images, on top of what the stock model waits for:

- nothing for one prompt without a mask (generate() drops one of ones, in versions of transformers that encode images
  first), with a stage at the projector that does not read the question;
- one wait, for the ids and the mask, for a batch, a prompt with a mask, a method that reads the question, or drops
  inside the language model;
- one before the encoder starts where the sizes of the images are values (LLaVA-NeXT, Qwen-VL);
- one for each stage whose count depends on the picture (adaptive methods; `hiprune` on Qwen-VL as released), and one
  for all drops of `autoprune`, whose counts follow from what is read once;
- for `prunesid` one for each shape of its units, whose suppression ends when it repeats itself (and, on a GPU, what the
  library of its eigenvectors waits for, which is not seen here).

Decoding waits for nothing.
"""

import functools
from collections import Counter

import pytest
import torch

import vtc
from tests.helpers import CHANGING, READERS, build, family_of, inputs_of
from tests.helpers_device import Device, is_masked, on_device, ours, to_device
from vtc.check.trial import watch
from vtc.kernels import backend
from vtc.patches import FAMILIES

pytestmark = pytest.mark.product

ONE, BATCH = (1,), (1, 2, 1)
INSIDE = ("autoprune", "dart", "fastv", "pyramiddrop", "todre", "transprune", "visiondrop")
QUICK = ("autoprune", "hiprune", "prunesid", "visionzip", "cdpruner", "todre", "transprune")
PROJECTOR = ("hiprune", "prunesid", "vtc_cls", "random", "uniform", "pool", "visionzip", "cdpruner")


@pytest.fixture(scope="module", params=["llava", "llava_next", "qwen2_5_vl"])
def device(request):
    """A family's tiny model on the device, inputs of one prompt and of a batch, and what the stock model waits for."""
    case = request.param
    model = build(case, torch.float32)
    inputs = {images: inputs_of(case, images, torch.float32) for images in (ONE, BATCH)}
    with torch.no_grad(), Device() as device:
        to_device(model)
        inputs = {images: on_device(given) for images, given in inputs.items()}
        stock = {(images, n): waits(model, device, given, n) for images, given in inputs.items() for n in (1, 4)}
        masked = is_masked(model, inputs[ONE])
    return case, model, inputs, stock, masked


@functools.cache
def twins(case: str):
    """The same model on the CPU."""
    return build(case, torch.float32)


def waits(model, device, inputs: dict, tokens: int) -> Counter:
    """What the host waits for in one generate(), by line."""
    device.waits.clear()
    model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return Counter(device.waits)


def own(found: Counter) -> Counter:
    """Those that code of vtc asks for itself."""
    return Counter({line: n for line, n in found.items() if ours(line)})


def allowed(case: str, strategy: str, images: tuple[int, ...], masked: bool, calls: int) -> int:
    """The budget of one prefill, as the top of this file has it. masked: one prompt is given a mask; calls: of stages,
    one for all units of a shape."""
    reads = masked or images != ONE or strategy in (*INSIDE, *CHANGING, *READERS)
    sizes = FAMILIES[family_of(case)].sizes is not None
    first = vtc.load_strategy(strategy, family_of(case)).stages[0].stage
    adaptive = strategy in ("todre", "autoprune") or getattr(first, "exclude", "exact") != "exact"
    return int(reads) + int(sizes) + int(adaptive) + (calls if strategy == "prunesid" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("images", [ONE, BATCH], ids=["one", "batch"])
@pytest.mark.parametrize(
    "strategy",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.full) for name in (*PROJECTOR, *INSIDE, *CHANGING)],
)
def test_waits_of_a_generation(device, strategy, images):
    """Prefill keeps to its budget, decoding adds nothing, and transformers itself waits no more often than before."""
    case, model, inputs, stock, masked = device
    with torch.no_grad(), Device() as counted, backend.use("reference"), vtc.patched(model, strategy):
        first = waits(model, counted, inputs[images], 1)
        longer = waits(model, counted, inputs[images], 4)
        written = model.generate(**inputs[images], max_new_tokens=4, do_sample=False).held
    twin = twins(case)
    with torch.no_grad(), backend.use("reference"), vtc.patched(twin, strategy):
        given, calls = inputs_of(case, images, torch.float32), watch(twin)
        assert torch.equal(written, twin.generate(**given, max_new_tokens=4, do_sample=False))
    assert own(first).total() <= allowed(case, strategy, images, masked, len(calls)), dict(own(first))
    assert own(longer) == own(first)
    theirs = longer - own(longer)
    assert theirs.total() <= stock[images, 4].total(), theirs - stock[images, 4]


def test_the_device_counts():
    """A read, a shape that depends on values, and a plain copy to the device are waits; a queued copy is not."""
    with Device() as device:
        x = on_device({"x": torch.arange(4)})["x"]
        assert int(x[2]) == 2
        assert x.tolist() == [0, 1, 2, 3]
        assert x[x > 1].shape == (2,)
        torch.tensor([1], device=x.device)
        torch.ones(3).to(x.device)
        assert device.waits.total() == 5
        y = torch.ones(4).to(x.device, non_blocking=True)
        assert (x + y).sum().device == x.device
    assert device.waits.total() == 5
