"""No [heads, N, N] tensor: the largest tensor that any operation makes while 8192 patches and more are observed."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import vtc
from vtc.patches import FAMILIES

pytestmark = pytest.mark.product


class Largest(TorchDispatchMode):
    """Remembers the largest number of elements in an operation's own output (views share memory and do not count)."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {
            t.untyped_storage().data_ptr()
            for t in torch.utils._pytree.tree_leaves((args, kwargs))
            if isinstance(t, torch.Tensor)
        }
        for t in torch.utils._pytree.tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in given:
                self.numel = max(self.numel, t.untyped_storage().nbytes() // t.element_size())
        return out


def run_encoder(name: str, side: int):
    """A tiny model whose encoder sees side x side patches, and the pictures for it."""
    family = FAMILIES[name]
    if name == "llava":
        model = family.tiny()
        vision = model.config.vision_config
        vision.image_size = side * vision.patch_size
        vision.num_hidden_layers = 2
        model = type(model)(model.config).eval()
        return model, {"pixel_values": torch.randn(1, 3, vision.image_size, vision.image_size)}
    model = family.tiny()
    pixels = torch.randn(side * side, 3 * 2 * 4 * 4)
    return model, {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, side, side]])}


@pytest.mark.parametrize("strategy", ["hiprune", "vtc_cls"])
@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_observed_layer_makes_no_full_attention_matrix(name, strategy):
    side, heads = 92, 2
    patches = side * side
    model, pictures = run_encoder(name, side)
    vtc.patch(model, strategy, keep=0.25, **({"start_layer": -2, "end_layer": -1} if strategy == "vtc_cls" else {}))
    with torch.no_grad(), Largest() as largest:
        output = model.model.get_image_features(**pictures, return_dict=True)
    seen = output._vtc_run.signals
    assert seen
    assert all(len(tile) == len(output.pooler_output[0]) for tiles in seen.values() for tile in tiles[0])
    assert largest.numel < 2**25 < heads * patches * patches, largest.numel


def test_the_meter_notices_a_full_matrix():
    q = torch.randn(1, 2, 300, 8)
    with Largest() as largest:
        (q @ q.transpose(2, 3)).softmax(-1)
    assert largest.numel == 2 * 300 * 300
