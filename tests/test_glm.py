"""What GLM has of its own: one placeholder id for images and clips. Its clips are tried in test_video.py."""

import torch

from tests.helpers import FAMILIES, model_of
from vtc.patches._tiny import BOS, IMAGE_TOKEN
from vtc.patches.glm4v import END, START, VIDEO_END, VIDEO_START
from vtc.patching import find_family


def test_placeholders_by_types_and_by_marks():
    """The types tell an image from a clip; without them, or with fewer than tokens (as beside drafted ones), the marks
    around the clip do."""
    family = find_family(model_of("glm4v"))
    ids = torch.tensor(
        [[BOS, START, IMAGE_TOKEN, END, VIDEO_START, START, IMAGE_TOKEN, IMAGE_TOKEN, END, VIDEO_END, 5]]
    )
    types = torch.tensor([[0, 0, 1, 0, 0, 0, 2, 2, 0, 0, 0]])
    for given in (types, None, types[:, :-1]):
        assert family.placeholders(ids, given, "image").nonzero()[:, 1].tolist() == [2]
        assert family.placeholders(ids, given, "video").nonzero()[:, 1].tolist() == [6, 7]
    assert family.placeholders(ids, 3 - types, "image").nonzero()[:, 1].tolist() == [6, 7]


def test_published_settings_are_those_of_qwen():
    """Positions are kept, as for the other families with M-RoPE."""
    for name in ("glm4v", "glm46v", "glm4v_moe"):
        assert (FAMILIES[name].follows, FAMILIES[name].positions()) == ("qwen2_5_vl", "keep")
