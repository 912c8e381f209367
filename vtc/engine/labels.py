"""Labels of a forward whose tokens are dropped: held back, and the loss computed on the remaining tokens."""

import torch
from torch import nn

from vtc.core.errors import PatchError, UnsupportedError
from vtc.core.hooks import Patchwork
from vtc.engine.calls import Frame, named
from vtc.engine.experts import FLAG, asks_for_routers, balance
from vtc.engine.media import given_kinds
from vtc.engine.state import OuterCall, PrunedPrompt, ThreadState


class Labels:
    """Removes the labels from the outer model's forward, whose logits will be shorter, and adds the loss afterwards."""

    def __init__(self, thread: ThreadState):
        self.thread = thread

    def put_on(self, work: Patchwork, model: nn.Module) -> None:
        """Hooks the outer model."""
        work.pre_hook(model, self._take)
        work.post_hook(model, self._loss, always=True)

    def _take(self, module: nn.Module, args: tuple, kwargs: dict):
        given = named(module, args, kwargs)
        images = bool(given_kinds(given))
        logits = given.get("logits_to_keep")
        places = images and isinstance(logits, torch.Tensor)
        outer = self.thread.outer = OuterCall(images, from_end=places or isinstance(logits, int) and logits > 0)
        if places:
            outer.places = given["logits_to_keep"] = from_the_end(given)
            kwargs = given
            args = ()
        outer.routers = asks_for_routers(module, given)
        if given.get("labels") is None and not outer.routers or not images and not self.thread.pending:
            outer.routers = False
            return args, Frame(kwargs, outer.over)
        outer.labels = given.pop("labels", None)
        if outer.routers:
            given[FLAG], outer.mask = False, given.get("attention_mask")
        return (), Frame(given, outer.over)

    def _loss(self, module: nn.Module, args: tuple, kwargs: dict, output):
        outer, self.thread.outer = self.thread.outer, None
        if outer is None or output is None:
            return None
        if outer.images and not outer.entered:
            raise PatchError(
                f"{type(module).__name__} was given images, but its inner model did not run as a module, so nothing "
                "was dropped; possible: vtc.unpatch(model), then vtc.patch(model, ...) on the model as it is now"
            )
        losses = {}
        if outer.routers and outer.router_logits is not None:
            losses["aux_loss"] = balance(module, outer.router_logits, outer.pruned, outer.mask)
        if outer.labels is None:
            return type(output)(**{**dict(output.items()), **losses}) if losses else None
        labels = outer.labels if outer.pruned is None else cut_labels(outer.labels, outer.pruned)
        logits = output[0] if isinstance(output, tuple) else output.logits
        extra = {k: kwargs[k] for k in ("num_items_in_batch", "ignore_index") if k in kwargs}
        vocabulary = module.config.get_text_config().vocab_size
        loss = module.loss_function(logits=logits, labels=labels, vocab_size=vocabulary, **extra)
        if isinstance(output, tuple):
            return (loss, *output)
        if losses:
            loss = loss + module.config.get_text_config().router_aux_loss_coef * losses["aux_loss"].to(loss.device)
        return type(output)(**{**dict(output.items()), **losses, "loss": loss})


def from_the_end(given: dict) -> torch.Tensor:
    """The places of `logits_to_keep` counted back from the last column, where text stays what it was. Raises
    UnsupportedError for a tensor that is no list of places, and beside labels."""
    places, tokens = given["logits_to_keep"], given.get("input_ids")
    tokens = given.get("inputs_embeds") if tokens is None else tokens
    if places.ndim != 1 or places.dtype.is_floating_point or places.dtype == torch.bool or tokens is None:
        raise UnsupportedError(
            f"logits_to_keep of shape {tuple(places.shape)} and type {places.dtype} is not supported; possible: a "
            "number of last tokens, or a list of places"
        )
    if given.get("labels") is not None:
        raise UnsupportedError("logits_to_keep as places, beside labels, is not supported; possible: one of the two")
    return torch.where(places < 0, places, places - tokens.shape[1])


def check_places(places: torch.Tensor, is_visual: torch.Tensor, real: torch.Tensor | None) -> None:
    """Raises UnsupportedError where a place [n], counted back from the end, is not in the text behind the last image of
    every prompt, since its column would hold another token. is_visual, real [B, L] bool; real: not padding."""
    back = -int(places.min()) if len(places) else 0
    behind = is_visual[:, is_visual.shape[1] - back :].any()
    if real is not None:
        behind = behind | ~real[:, real.shape[1] - back :].all()
    if bool(behind):
        raise UnsupportedError(
            f"logits_to_keep asks for the token {back} from the end, which is in an image, before one, or padding, in "
            "some prompt; possible: places in the text behind the last image"
        )


def cut_labels(labels: torch.Tensor, pruned: PrunedPrompt) -> torch.Tensor:
    """Labels [B, L] of the tokens that reach the last layer [B, K]; filler is ignored (-100)."""
    return pruned.cut(labels, -100)
