"""The bundled video demo model: a tiny LLaVA-NeXT-Video that answers questions about generated clips, its benchmark.

Example: `vtc eval --model demo-video --tasks demo_video`, or `vtc.eval.models.load("demo-video", {}, "cpu")`.
"""

from pathlib import Path

VIDEO_MODEL_DIR = Path(__file__).parent / "model"
