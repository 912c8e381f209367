"""A second model object on the same weights, without the hooks of a patchwork: one graph for torch.compile."""

from collections.abc import Iterable

from torch import nn

from vtc.core.hooks import MISSING, Patchwork

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
BESIDE = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")
COMPILED = ("_compiled_call", "_last_compile_config")  # transformers' own, of the model with hooks


def twin(model: nn.Module, work: Patchwork, also: Iterable[nn.Module] = ()) -> nn.Module | None:
    """A model that does what `model` does without the hooks and attributes of `work`, and with all others.

    Modules that `work` changed, those in `also`, and those that hold them, are shallow copies; everything else is
    shared, above all the parameters. None where this cannot be: the forward of a module to be copied was replaced on
    the module itself (by accelerate, or torch.compile), and would lead back to it.
    """
    changed = {*also, *work.hooks, *(target for target, _, _ in work.replaced if isinstance(target, nn.Module))}
    copies: dict[nn.Module, nn.Module] = {}
    plain = _copied(model, changed, work, copies)
    new = (copy for module, copy in copies.items() if copy is not module)
    return None if any(own_forward(copy) for copy in new) else plain


def _copied(module: nn.Module, changed: set, work: Patchwork, copies: dict) -> nn.Module:
    """A module's counterpart, which is the module itself where neither it nor anything in it is changed."""
    if module not in copies:
        own = module._modules
        children = {n: None if m is None else _copied(m, changed, work, copies) for n, m in own.items()}
        shared = module not in changed and all(child is own[name] for name, child in children.items())
        copies[module] = module if shared else _copy(module, children, work)
    return copies[module]


def own_forward(module: nn.Module) -> bool:
    """Whether the forward of a module was replaced on the module itself. (Older versions of transformers put a class's
    own there when they have recorded what layers give.)"""
    forward = vars(module).get("forward")
    return forward is not None and not _of_class(module, forward)


def _of_class(module: nn.Module, forward: object) -> bool:
    bound = getattr(forward, "__self__", None) is module
    return bound and getattr(forward, "__func__", None) is type(module).forward


def _copy(module: nn.Module, children: dict, work: Patchwork) -> nn.Module:
    copy = object.__new__(type(module))
    # The first change of an attribute tells what was there before.
    before = {name: value for target, name, value in reversed(work.replaced) if target is module}
    state = {name: value for name, value in vars(module).items() if name not in COMPILED} | before
    if _of_class(module, state.get("forward")):
        del state["forward"]
    vars(copy).update({name: value for name, value in state.items() if value is not MISSING})
    vars(copy).update(_modules=children, _compiled_call_impl=None)  # torch.compile's modules hand attributes on
    removed = work.hooks.get(module, ())
    for name in (*HOOKS, *BESIDE):
        kept = {number: hook for number, hook in vars(module)[name].items() if number not in removed}
        vars(copy)[name] = type(vars(module)[name])(kept)
    return copy
