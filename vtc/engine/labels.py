"""Labels of a forward whose tokens are dropped: kept back, and the loss computed on what survives."""

import torch
from torch import nn

from vtc.engine.calls import named
from vtc.engine.state import PrunedPrompt, ThreadState
from vtc.errors import UnsupportedError
from vtc.hooks import Patchwork


class Labels:
    """Takes labels out of the outer model's forward, whose logits will be shorter than they are, and adds the loss."""

    def __init__(self, thread: ThreadState):
        self.thread = thread

    def put_on(self, work: Patchwork, model: nn.Module) -> None:
        """Hooks the outer model."""
        work.pre_hook(model, self._take)
        work.post_hook(model, self._loss)

    def _take(self, module: nn.Module, args: tuple, kwargs: dict):
        if torch.compiler.is_compiling():
            raise UnsupportedError(
                "torch.compile of a patched model would lose its hooks; possible: compile language_model or "
                "its layers, or leave the model uncompiled"
            )
        self.thread.labels = None
        given = named(module, args, kwargs)
        if given.get("pixel_values") is None and not given.get("mm_encoder_outputs"):
            return None
        if isinstance(given.get("logits_to_keep"), torch.Tensor):
            raise UnsupportedError(
                "logits_to_keep as a tensor of places is not supported; possible: a number of last tokens"
            )
        if given.get("labels") is None:
            return None
        self.thread.labels = given.pop("labels")
        return (), given

    def _loss(self, module: nn.Module, args: tuple, kwargs: dict, output):
        labels, pruned = self.thread.labels, self.thread.last_pruned
        self.thread.labels = None
        if labels is None or pruned is None:
            return None
        logits = output[0] if isinstance(output, tuple) else output.logits
        extra = {k: kwargs[k] for k in ("num_items_in_batch", "ignore_index") if k in kwargs}
        vocabulary = module.config.get_text_config().vocab_size
        loss = module.loss_function(logits=logits, labels=cut_labels(labels, pruned), vocab_size=vocabulary, **extra)
        if isinstance(output, tuple):
            return (loss, *output)
        return type(output)(**{**dict(output.items()), "loss": loss})


def cut_labels(labels: torch.Tensor, pruned: PrunedPrompt) -> torch.Tensor:
    """Labels [B, L] at the places kept to the end [B, K]; filler is ignored (-100)."""
    return pruned.cut(labels, -100)
