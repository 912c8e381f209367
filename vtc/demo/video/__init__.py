"""The bundled video demo model: a tiny LLaVA-NeXT-Video that answers questions about generated clips, its benchmark.

Example: `vtc eval --model demo-video --tasks demo_video`, or `vtc.eval.models.load("demo-video", {}, "cpu")`.
"""

from pathlib import Path

VIDEO_MODEL_DIR = Path(__file__).parent / "model"


def load_video(folder=VIDEO_MODEL_DIR, **from_pretrained_kwargs):
    """Load the shipped checkpoint, or one in another `folder`, as `(model, tokenizer)`, the model in eval mode.

    Never uses the network and needs no torchvision, which transformers wants for the processor's video part. Keyword
    arguments go to `from_pretrained`; the default dtype is float32. Raises OSError when the weights are missing.
    """
    from transformers import AutoTokenizer, LlavaNextVideoForConditionalGeneration

    from_pretrained_kwargs.setdefault("local_files_only", True)
    model = LlavaNextVideoForConditionalGeneration.from_pretrained(folder, **from_pretrained_kwargs)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)
