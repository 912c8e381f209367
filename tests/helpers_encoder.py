"""An oracle of the encoder site: each image alone, its encoder run by hand on the shortened sequence, in another order.

It knows no engine: tokens stand in the order in which the stage sees them, attention is written out with a mask of
windows and log sizes, and nothing is batched. Of a stage it uses `select`, with signals that are computed here.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tests.helpers_oracle import layouts, truth, visual_places
from vtc.core.selection import Merge, Selection
from vtc.core.signals import (
    AttentionColumns,
    Carried,
    ClsAttention,
    ClsValueAttention,
    Context,
    EncoderKeys,
    Hidden,
    Sizes,
    ValueNorms,
)
from vtc.patches.qwen2_5_vl import window_index
from vtc.patching import find_family
from vtc.strategies.base import Cut, EncoderStage


@dataclass(frozen=True)
class Strided(EncoderStage):
    """Keeps tokens at even distances in two steps, half of what is to go at each."""

    layers: tuple[int, ...] = (0, 2)
    strategy = {"keep": 0.4}  # noqa: RUF012

    def steps(self, encoder) -> tuple[Cut, ...]:
        """Behind the layers."""
        return tuple(map(Cut, self.layers))

    def counts(self, tokens, target, encoder) -> tuple[int, ...]:
        """Half way, and the target."""
        return (tokens + target + 1) // 2, target

    def needs(self, encoder, step) -> tuple:
        """Nothing."""
        return ()

    def select(self, context, encoder) -> Selection:
        """The same for all."""
        keep = torch.arange(context.count) * context.tokens // context.count
        return Selection(keep.expand(len(context.ordinals), -1).contiguous())


@dataclass(frozen=True)
class Uneven(Strided):
    """As Strided, but how many stay at the first step depends on the picture."""

    adaptive = True

    def counts(self, tokens, target, encoder) -> tuple[int, ...]:
        """The target."""
        return target, target

    def needs(self, encoder, step) -> tuple:
        """Where the hidden state is largest tells how many stay."""
        return (Hidden(),)

    def select(self, context, encoder) -> Selection:
        """The target and up to six more, spread out."""
        (signal,) = self.needs(encoder, context.step)
        more = context[signal].sum(-1).argmax(1) % 7 if context.step == 0 else torch.zeros(len(context.ordinals)).long()
        n = (context.count + more).clamp(max=context.tokens)
        slots = torch.arange(int(n.max()))
        keep = slots * context.tokens // n[:, None]
        return Selection(keep.clamp(max=context.tokens - 1), valid=slots < n[:, None])


@dataclass(frozen=True)
class Pairs(EncoderStage):
    """Merges the first tokens that it sees into the last ones, weighted by size, between attention and MLP, and turns
    the order round."""

    layers: tuple[int, ...] = (0, 1, 2)
    within: bool = True
    strategy = {"keep": 0.4}  # noqa: RUF012
    proportional = True

    def steps(self, encoder) -> tuple[Cut, ...]:
        """Inside the layers."""
        return tuple(Cut(layer, self.within) for layer in self.layers)

    def counts(self, tokens, target, encoder) -> tuple[int, ...]:
        """Equal parts."""
        parts = len(self.layers)
        return tuple(tokens - (tokens - target) * (i + 1) // parts for i in range(parts))

    def needs(self, encoder, step) -> tuple:
        """What the tokens hold."""
        return (Sizes(),)

    def select(self, context, encoder) -> Selection:
        """Token i of the first ones joins the i-th from the end."""
        (signal,) = self.needs(encoder, context.step)
        gone, n, units = context.tokens - context.count, context.tokens, len(context.ordinals)
        target = torch.arange(n) - gone
        target[:gone] = context.count - 1 - torch.arange(gone) % context.count
        target = target.expand(units, -1).contiguous()
        sizes = context[signal]
        total = torch.zeros(units, context.count).scatter_add_(1, target, sizes)
        keep = torch.arange(gone, n).expand(units, -1).contiguous()
        order = torch.arange(context.count).flip(0).expand(units, -1).contiguous()
        weight = (sizes.double() / total.double().gather(1, target)).double()
        return Selection(keep, merge=Merge(target, weight), order=order)


@contextmanager
def watched(module: nn.Module):
    """The arguments that a module is called with."""
    seen = []
    handle = module.register_forward_pre_hook(lambda m, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@dataclass
class Unit:
    """One crop or packed image. h [lead + n * cell, D] in the stage's order; place [n]: of each token; size [n]; carry
    [n]; members of each token, by place; planes: the places of the tokens that each DeepStack plane was made of, and
    its rows."""

    h: Tensor
    place: Tensor
    size: Tensor
    carry: Tensor
    members: list
    planes: list = field(default_factory=list)


class Hand:
    """The encoder of an unpatched model, by hand. stage: with cuts; cell: rows of a token."""

    def __init__(self, model: nn.Module, stage: EncoderStage):
        self.family = find_family(model)
        self.encoder, self.stage, self.blocks = self.family.encoder, stage, self.family.blocks
        self.cuts, self.lead = stage.steps(self.encoder), int(self.family.encoder.has_cls)
        self.singly = stage.singly(self.encoder) and self.encoder.cell > 1
        self.cell = 1 if self.singly else self.encoder.cell
        self.packed = self.encoder.cell > 1
        layers = getattr(self.family.tower, "deepstack_visual_indexes", ())
        self.planes = dict(zip(layers, self.family.tower.deepstack_merger_list, strict=True)) if layers else {}

    def rows(self, tokens: Tensor) -> Tensor:
        """Rows of h, or patches of the unpruned sequence, of these tokens."""
        return (tokens[:, None] * self.cell + torch.arange(self.cell)).flatten()

    def attention(self, layer: int, unit: Unit, context) -> tuple[Tensor, dict]:
        """The output of a layer's attention, and its signals by kind."""
        block = self.blocks[layer]
        if self.packed:
            x, attn = block.norm1(unit.h), block.attn
            q, k, v = attn.qkv(x).view(len(x), 3, attn.num_heads, -1).permute(1, 2, 0, 3)
            (cos, sin), bounds = context[layer]
            where = self.rows(unit.place)
            q, k = (_rotated(t, cos[where], sin[where]) for t in (q, k))
            window = torch.bucketize(where, bounds.long(), right=True)
            allowed = window[:, None] == window[None]
        else:
            x, attn = block.layer_norm1(unit.h), block.self_attn
            q, k, v = (
                p(x).view(len(x), -1, attn.head_dim).transpose(0, 1) for p in (attn.q_proj, attn.k_proj, attn.v_proj)
            )
            allowed = torch.ones(len(x), len(x), dtype=torch.bool)
        logits = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
        bias = torch.zeros(len(x), dtype=logits.dtype)
        if self.stage.proportional:
            bias[self.lead :] = unit.size.log().repeat_interleave(self.cell).to(bias.dtype)
        logits = (logits + bias).masked_fill(~allowed, -torch.inf)
        out = (logits.softmax(-1) @ v).transpose(0, 1).reshape(len(x), -1)
        proj = attn.proj if self.packed else attn.out_proj
        a, g = torch.zeros(2, len(x), dtype=bias.dtype)
        for segment in allowed.unique(dim=0):  # each window has a mean query of its own
            mine = segment.nonzero().flatten()
            query, value = (t[:, :1] if self.lead else t[:, mine].mean(1, keepdim=True) for t in (q, v))
            a[mine] = (query @ k[:, mine].transpose(1, 2) * q.shape[-1] ** -0.5 + bias[mine]).softmax(-1).mean(0)[0]
            g[mine] = (value @ v[:, mine].transpose(1, 2) + bias[mine]).softmax(-1).mean(0)[0]
        columns = (logits.softmax(-1).mean(0) / allowed.sum(1, keepdim=True)).sum(0)
        seen = {
            AttentionColumns: columns,
            ClsAttention: a,
            ClsValueAttention: g,
            EncoderKeys: k.mean(0),
            ValueNorms: v.mean(0).abs().sum(-1),
        }
        return proj(out), {kind: self.tokens(t[self.lead :]) for kind, t in seen.items()}

    def tokens(self, x: Tensor) -> Tensor:
        """Rows as tokens: the mean of a cell's patches."""
        return x.unflatten(0, (-1, self.cell)).mean(1) if self.cell > 1 else x

    def step(self, number: int, units: list[Unit], seen: list[dict], counts: list[tuple[int, ...]]) -> None:
        """One cut of all crops of an image."""
        per = [i for i, unit in enumerate(units) if counts[i][number] < len(unit.place)]
        groups: dict = {}
        for i in per:
            groups.setdefault((len(units[i].place), counts[i]), []).append(i)
        for (n, mine), members in groups.items():
            signals = {}
            for signal in self.stage.needs(self.encoder, number):
                values = [self.look(signal, units[i], seen[i]) for i in members]
                signals[signal] = torch.stack(values)
            ordinals = tuple(range(len(members)))
            context = Context(
                n, mine[number], None, ordinals, torch.device("cpu"), signals, number, images=(0,) * len(members)
            )
            selection = self.stage.select(context, self.encoder)
            for b, i in enumerate(members):
                self.apply(units[i], selection, b)

    def look(self, signal, unit: Unit, seen: dict) -> Tensor:
        """One signal of one unit."""
        kinds = {Sizes: unit.size, Carried: unit.carry}
        if type(signal) in kinds:
            return kinds[type(signal)].float()
        if isinstance(signal, Hidden):
            return self.tokens(unit.h[self.lead :])
        return seen[signal]

    def apply(self, unit: Unit, selection: Selection, b: int) -> None:
        """Row b of a selection."""
        x = unit.h[self.lead :].unflatten(0, (-1, self.cell)).flatten(1)
        keep = selection.keep[b] if selection.valid is None else selection.keep[b][selection.valid[b]]
        weight = torch.zeros(len(keep), len(x), dtype=torch.float64)
        if selection.mix is not None:
            weight = selection.mix[b].double()
        elif selection.merge is None:
            weight[torch.arange(len(keep)), keep] = 1
        else:
            for token, (slot, share) in enumerate(zip(selection.merge.target[b], selection.merge.weight[b])):
                if slot >= 0:
                    weight[slot, token] += share.double()
        order = torch.arange(len(keep)) if selection.order is None else selection.order[b]
        merging = selection.merge is not None
        flows = (weight > 0).double() if merging or selection.mix is None else None
        size = flows @ unit.size if flows is not None else selection.sizes[b].double()
        members = [sum((unit.members[t] for t in weight[s].nonzero().flatten().tolist()), []) for s in range(len(keep))]
        new = (weight @ x.double()).to(x.dtype)
        unit.h = torch.cat([unit.h[: self.lead], new[order].reshape(-1, unit.h.shape[-1])])
        unit.place, unit.size, unit.members = unit.place[keep][order], size[order], [members[s] for s in order]
        unit.carry = torch.zeros(len(keep)) if selection.carry is None else selection.carry[b, : len(keep)][order]

    def run(self, hidden: list[Tensor], targets: list[int], context: dict) -> list[Unit]:
        """All layers that matter on the crops of one image, h [lead + N, D] each."""
        units = []
        per = self.encoder.cell if self.singly else 1
        for h in hidden:
            n = (len(h) - self.lead) // self.cell
            units.append(Unit(h, torch.arange(n), torch.ones(n).double(), torch.zeros(n), [[i] for i in range(n)]))
        counts = [
            self.stage.counts(len(unit.place), target * per, self.encoder)
            for unit, target in zip(units, targets, strict=True)
        ]
        found: list[dict] = [{} for _ in units]
        for layer in range(self.encoder.last + 1):
            block = self.blocks[layer]
            for i, unit in enumerate(units):
                out, seen = self.attention(layer, unit, context)
                found[i] |= {kind(layer): value for kind, value in seen.items()}
                unit.h = unit.h + out
            self.due(layer, True, units, found, counts)
            for unit in units:
                norm = block.norm2 if self.packed else block.layer_norm2
                unit.h = unit.h + block.mlp(norm(unit.h))
            self.due(layer, False, units, found, counts)
            for unit in units if layer in self.planes else ():
                order = unit.place.argsort()
                unit.planes.append((unit.place[order], self.planes[layer](unit.h[self.rows(order)])))
        return units

    def due(self, layer, within, units, found, counts) -> None:
        """The cuts at one point."""
        for number, cut in enumerate(self.cuts):
            if cut == Cut(layer, within):
                self.step(number, units, found, counts)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half, kind = x.shape[-1] // 2, x.dtype
    x, cos, sin = x.float(), cos.float(), sin.float()  # as transformers does, whatever the model's type
    return (x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin).to(kind)


@torch.no_grad()
def encoded(model: nn.Module, single: dict, stage: EncoderStage, targets) -> list[tuple[Tensor, Tensor, list[Unit]]]:
    """Per image of one prompt: the places in its run of tokens that are left, their features, and the units.

    targets: gives for the tokens of each crop of an image how many leave the encoder.
    """
    hand = Hand(model, stage)
    assert "_vtc_patch" not in vars(model)
    images, found = layouts(model, single), []
    if hand.packed:
        media = {kind: _packed(model, hand, single, kind, targets) for kind in ("image", "video")}
        return [next(media["video" if image.frames else "image"]) for image in images]
    with watched(hand.blocks[0]) as first:
        model(**single)
    args, kwargs = first[0]
    h = args[0] if args else kwargs["hidden_states"]
    for image in images:
        crops = [h[tile.crop] for tile in image.tiles]
        units = hand.run(crops, targets([len(c) - hand.lead for c in crops]), {})
        full, alive = torch.zeros(image.tokens, model.config.text_config.hidden_size).to(h.dtype), []
        for tile, unit in zip(image.tiles, units, strict=True):
            order = unit.place.argsort()
            features = dict(zip(unit.place[order].tolist(), hand.family.inner.multi_modal_projector(
                unit.h[None, hand.lead :][:, order])[0], strict=True))  # fmt: skip
            for offset, patch in zip(tile.offsets.tolist(), tile.patches.tolist(), strict=True):
                if patch in features:
                    full[offset] = features[patch]
                    alive.append(offset)
        places = torch.tensor(sorted(alive))
        found.append((places, full[places], units))
    return found


@contextmanager
def _all(blocks: list[nn.Module], contexts: list):
    handles = [
        block.register_forward_pre_hook(
            lambda m, args, kwargs, i=i: contexts.__setitem__(
                i, (kwargs.get("position_embeddings"), kwargs.get("cu_seqlens"))
            ),
            with_kwargs=True,
        )
        for i, block in enumerate(blocks)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tokens_of(visual, rows):
    """Visual tokens of the last block's patches [4 n, D]; in GLM a convolution joins four before the merger."""
    if not hasattr(visual, "downsample"):
        return visual.merger(rows)
    squares = visual.post_layernorm(rows).view(-1, 2, 2, rows.shape[-1])
    joined = torch.einsum("nyxd,odyx->no", squares, visual.downsample.weight) + visual.downsample.bias
    return visual.merger(joined)


def _packed(model, hand, single, kind, targets):
    """As in `encoded`, the images or the clips of a prompt one by one, from a packed encoder; a frame is a unit."""
    pixels, sizes = "pixel_values" + ("_videos" if kind == "video" else ""), f"{kind}_grid_thw"
    contexts, start = [None] * len(hand.blocks), 0
    with watched(hand.blocks[0]) as first, _all(hand.blocks, contexts):
        getattr(model.model, f"get_{kind}_features")(single[pixels], single[sizes])
    args, kwargs = first[0]
    h = args[0] if args else kwargs["hidden_states"]
    for frames, a, b in single[sizes].tolist():
        size, mine = a * b, {}
        for layer, ((cos, sin), bounds) in enumerate(contexts):
            inside = bounds[(bounds >= start) & (bounds <= start + size)] - start
            mine[layer] = (cos[start : start + size], sin[start : start + size]), inside
        cells = size // hand.encoder.cell
        parts = h[start : start + frames * size].split(size)
        units = hand.run(list(parts), targets([cells] * frames), mine)
        start += frames * size
        raster, places, features = torch.arange(cells), [], []
        if hand.family.name == "qwen2_5_vl":
            vision = model.config.vision_config
            raster = window_index(a // 2, b // 2, vision.window_size // 2 // vision.patch_size)
        for number, unit in enumerate(units):
            order = unit.place.argsort()
            rows = tokens_of(model.model.visual, unit.h[hand.rows(order)])
            where = torch.arange(len(rows)) if hand.singly else raster[unit.place[order]]
            places.append(where.sort().values + number * cells)
            features.append(rows[where.argsort()])
        yield torch.cat(places), torch.cat(features), units


def truth_of(model: nn.Module, single: dict, stage: EncoderStage, targets, positions: str):
    """What the language model of an unpatched model gives for the shortened prompt; see `helpers_oracle.truth`."""
    found = encoded(model, single, stage, targets)
    kept = [places for places, _, _ in found]
    assert sum(map(len, visual_places(model, single))) >= sum(map(len, kept))
    features, planes = [features for _, features, _ in found], [planes_left(*units) for *_, units in found]
    return truth(model, single, kept, positions, features=features, planes=planes), found


def planes_left(*units: Unit) -> list[Tensor]:
    """The rows of each plane whose tokens are left of an image; a token has those made of itself before it merged."""
    rows = zip(*([plane[torch.isin(places, u.place)] for places, plane in u.planes] for u in units), strict=True)
    return list(map(torch.cat, rows))
