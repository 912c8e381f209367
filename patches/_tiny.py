"""Random inputs for the families' tiny models: prompts with image placeholders, padded to one length."""

import torch
from torch import nn

TEXT = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096,
}  # fmt: skip
IMAGE_TOKEN, PAD, BOS, EOS = 120, 0, 1, 2


def finish(model: nn.Module) -> nn.Module:
    """Ready for tests: evaluation mode, and random weights never write an image placeholder or end early."""
    model.generation_config.suppress_tokens = [EOS, *range(IMAGE_TOKEN, TEXT["vocab_size"])]
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = PAD, None
    return model.eval()


def prompts(
    tokens_per_image: list[list[int | list[int]]], seed: int, padding: str = "left", image: list[int] | None = None
) -> dict:
    """input_ids and attention_mask [B, L]: text, then each image followed by text; `image` wraps the placeholders.

    tokens_per_image: per prompt, the number of placeholder tokens of each of its images; or all ids, as of a clip.
    """
    generator = torch.Generator().manual_seed(seed)

    def text(length: int) -> list[int]:
        return torch.randint(3, 100, (length,), generator=generator).tolist()

    before, after = image or ([], [])
    rows = []
    for i, images in enumerate(tokens_per_image):
        row = [BOS, *text(3 + 2 * i)]
        for n in images:
            row += [*([*before, *[IMAGE_TOKEN] * n, *after] if isinstance(n, int) else n), *text(4 + i)]
        rows.append(row)
    length = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        pad = length - len(row)
        ids.append([PAD] * pad + row if padding == "left" else row + [PAD] * pad)
        mask.append([0] * pad + [1] * len(row) if padding == "left" else [1] * len(row) + [0] * pad)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
