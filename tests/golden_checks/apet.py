"""ApET: features and a first token -> basis -> errors -> kept tokens, places that the basis takes, merged tokens."""

import torch
from torch import Tensor

from vtc.config.resolve import resolve
from vtc.core.signals import Context, Encoder
from vtc.strategies.apet_projector import farthest_points, reconstruction_errors, select_tokens

ENCODER = Encoder("llava", 24, True, tuple(range(24)))


def check(tensors: dict[str, Tensor], params: dict) -> None:
    """features [n, d]; basis [b], whose first is `first_basis`; error [n]; kept_sorted [k], basis_slots [b], tokens [k,
    d]."""
    features, count, many = tensors["features"][None], params["k"], params["basis_count"]
    first = torch.tensor([params["first_basis"]])
    basis = farthest_points(features, first, many)
    assert basis[0].tolist() == tensors["basis"].tolist()
    errors = reconstruction_errors(features, basis)[0]
    # Those of the basis itself are rounding.
    torch.testing.assert_close(errors, tensors["error"], rtol=1e-4, atol=1e-4)

    selection = select_tokens(features, count, many, first)
    assert selection.keep[0].tolist() == tensors["kept_sorted"].tolist()
    assert selection.keep[0][selection.merge.extra.target[0]].tolist() == tensors["basis_slots"].tolist()
    assert selection.merge.extra.source[0].tolist() == tensors["basis"].tolist()
    torch.testing.assert_close(selection.apply_features(features)[0], tensors["tokens"], rtol=0, atol=1e-5)

    knobs = {"apet_projector.basis": many, "apet_projector.first": params["first_basis"], "apet_projector.keep": count}
    config = resolve("apet", "llava", **knobs).projector
    signals = {config.stage.needs(ENCODER)[0]: features}
    context = Context(params["n"], count, None, (0,), torch.device("cpu"), signals)
    found = config.stage.select(context, ENCODER)
    hidden = torch.cat([torch.zeros_like(features[:, :1]), features], 1)
    torch.testing.assert_close(found.apply_features(hidden)[0], tensors["tokens"], rtol=0, atol=1e-5)
