"""The bundled demo model: a tiny LLaVA that answers questions about generated scenes, and its benchmark.

Example: `model, processor = vtc.demo.load()`, then `vtc.demo.benchmark.samples("test", limit=70)` for questions.
"""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"


def load(folder=MODEL_DIR, **from_pretrained_kwargs):
    """Load the shipped checkpoint, or one in another `folder`, as `(model, processor)`, the model in eval mode.

    Never uses the network. Keyword arguments (`dtype`, `attn_implementation`, ...) go to
    `from_pretrained`; the default dtype is float32. The model is a `LlavaForConditionalGeneration`, the processor a
    `LlavaProcessor`.
    Raises OSError when the weights are missing, as in an install without package data.
    """
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    from_pretrained_kwargs.setdefault("local_files_only", True)
    model = LlavaForConditionalGeneration.from_pretrained(folder, **from_pretrained_kwargs)
    return model.eval(), AutoProcessor.from_pretrained(folder, local_files_only=True)
