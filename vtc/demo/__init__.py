"""The bundled demo model: a tiny LLaVA that answers questions about generated scenes, and its benchmark.

Example: `model, processor = vtc.demo.load()`, then `vtc.demo.benchmark.samples("test", limit=70)` for questions.
"""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"


def load(**from_pretrained_kwargs):
    """Load the shipped checkpoint from disk, never from the network, as `(model, processor)`, the model in eval mode.

    Keyword arguments (`dtype`, `attn_implementation`, `device_map`, ...) go to `from_pretrained`; the default dtype is
    float32. The model is a `LlavaForConditionalGeneration`, the processor a `LlavaProcessor`.
    Raises OSError when the weights are missing, as in an install without package data.
    """
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    from_pretrained_kwargs.setdefault("local_files_only", True)
    model = LlavaForConditionalGeneration.from_pretrained(MODEL_DIR, **from_pretrained_kwargs)
    return model.eval(), AutoProcessor.from_pretrained(MODEL_DIR, local_files_only=True)
