"""Tokens that differ from the picture as a whole."""

from dataclasses import dataclass
from pathlib import Path

from torch.nn.functional import cosine_similarity

from vtc import ConfigError
from vtc.core.selection import Selection
from vtc.core.signals import Context, Encoder, Features
from vtc.kernels.topk import topk_sorted
from vtc.strategies.base import Stage


@dataclass(frozen=True)
class Unusual(Stage):
    """Keeps the tokens whose projected feature is least like the mean of all tokens of the image.

    Knobs: power: of a token's length, by which its distance is multiplied (0: direction alone counts).
    A template; no paper.
    """

    power: float = 1.0
    strategy = Path(__file__).with_name("unusual.yaml")

    def __post_init__(self):
        if self.power < 0:
            raise ConfigError(f"power={self.power} is negative; possible: 0 or more")

    def needs(self, encoder: Encoder):
        """The projected features [B, N, D]."""
        return (Features(),)

    def select(self, context: Context, encoder: Encoder) -> Selection:
        """The `count` best of each of the B images; ties go to the lower index."""
        features = context[Features()].float()  # scores are float32, whatever the model is
        distance = 1 - cosine_similarity(features, features.mean(1, keepdim=True), dim=-1)  # [B, N]
        return Selection(topk_sorted(distance * features.norm(dim=-1) ** self.power, context.count))
