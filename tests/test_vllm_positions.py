"""M-RoPE positions of served prompts: those that a patched model gives its language model, whole or in chunks."""

import pytest
import torch

import vtc
from tests.helpers import inputs_of, model_of
from vtc.patches import FAMILIES
from vtc.patches._tiny import IMAGE_TOKEN
from vtc.vllm.positions import Placed, add_places, initial

CASES = [name for name, family in ((n, FAMILIES[n]) for n in FAMILIES) if family.mrope and family.served]


def patched_prompt(case: str, images: int, positions: str, keep: float):
    """One prompt through a patched tiny model: the positions [3, L] of its language model, the position after it, and
    of each image the grid and the kept places."""
    inputs, seen = inputs_of(case, (images,)), []

    def note(module, args, kwargs):
        seen.extend(x[-3:, 0] for x in (*args, *kwargs.values()) if not x.is_floating_point())

    with vtc.patched(model_of(case), "uniform", keep, positions=positions) as model, torch.no_grad():
        handle = model.model.language_model.rotary_emb.register_forward_pre_hook(note, with_kwargs=True)
        model.generate(**inputs, max_new_tokens=2, min_new_tokens=2, do_sample=False)
        handle.remove()
        kept = [image.steps[0].kept for image in vtc.report(model).images]
    grids = [(h // 2, w // 2) for _, h, w in inputs["image_grid_thw"].tolist()]
    return inputs, seen[0], seen[1], grids, kept


def pruned_prompt(ids: torch.Tensor, kept: list[torch.Tensor], grids) -> tuple[torch.Tensor, list[Placed]]:
    """The ids of a prompt with as many placeholders as are kept, and where its images are."""
    found, images, sizes = [], [], iter(zip(kept, grids, strict=True))
    previous = None
    for token in ids.tolist():
        if token != IMAGE_TOKEN:
            found.append(token)
        elif previous != IMAGE_TOKEN:
            places, grid = next(sizes)
            images.append(Placed(len(found), len(places), grid))
            found += [IMAGE_TOKEN] * len(places)
        previous = token
    return torch.tensor(found), images


@pytest.mark.parametrize("chunk", [1000, 16, 7, 1])
@pytest.mark.parametrize("images", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_survivors_keep_their_places(case, images, chunk):
    """Portrait, landscape and square pictures; the prompt computed in chunks that cut through images."""
    inputs, expected, following, grids, kept = patched_prompt(case, images, "keep", 0.25)
    ids, placed = pruned_prompt(inputs["input_ids"][0], kept, grids)
    found, delta = initial(len(ids), placed, keep_places=True)
    assert torch.equal(found[:, ids != IMAGE_TOKEN], expected[:, ids != IMAGE_TOKEN])  # text is right from the start
    places = torch.cat([torch.stack([k // g[1], k % g[1]], 1) for k, g in zip(kept, grids, strict=True)])
    visual, done = ids == IMAGE_TOKEN, 0
    for start in range(0, len(ids), chunk):
        n = int(visual[start : start + chunk].sum())
        found = add_places(found, visual, start, places[done : done + n])
        done += n
    assert torch.equal(found, expected)
    assert (following == len(ids) + delta).all()
    again = add_places(found, visual, 0, places)
    assert torch.equal(again, found)  # computed anew after preemption


@pytest.mark.parametrize("case", CASES)
def test_numbered_without_gaps(case):
    """positions="compact" is known before an image is encoded."""
    inputs, expected, following, grids, kept = patched_prompt(case, 2, "compact", 0.25)
    ids, placed = pruned_prompt(inputs["input_ids"][0], kept, grids)
    found, delta = initial(len(ids), placed, keep_places=False)
    assert torch.equal(found, expected)
    assert (following == len(ids) + delta).all()


def test_text_only():
    """A prompt without images has plain positions."""
    found, delta = initial(5, [], keep_places=True)
    assert found.tolist() == [list(range(5))] * 3
    assert delta == 0


def test_an_image_at_the_end():
    """What follows a prompt that ends with an image stands behind its longer side."""
    found, delta = initial(6, [Placed(2, 4, (3, 9))], keep_places=True)
    assert found[0].tolist() == [0, 1, 2, 2, 2, 2]
    assert 6 + delta == 11
