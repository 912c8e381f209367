"""Properties of patched calls: batches, padding, repetition, keep=1.0, decoding, the report, and unpatching."""

import torch
from torch import Tensor

from vtc.check.batch import IMAGES, cached_lengths, forward, generate, grow, padded, real_columns
from vtc.check.trace import state
from vtc.check.trial import Trial, watch
from vtc.check.verdicts import Violation
from vtc.patching import report

NEAR = 1e-6  # tolerance of logits in float64; weights of a merge may be float32
STEPS = 6  # generated tokens


def tolerance(trial: Trial) -> float:
    """Tolerance of logits: larger where a part of the model computes in float32."""
    return max(NEAR, trial.tiny.family.rounding)


def batch(trial: Trial, near: float | None = None) -> None:
    """A batch, padded on either side, keeps what its prompts keep one by one, and has the same last logits."""
    near = tolerance(trial) if near is None else near
    alone = [trial.run(single) for single in trial.tiny.singles(trial.inputs)]
    for side in ("left", "right"):
        run = trial.run(padded(trial.inputs, side))
        for b, (one, length) in enumerate(zip(alone, run.report.prompts_after)):
            _same_kept(one.kept(0), run.kept(b), f"prompt {b} in a batch padded on the {side}")
            last = run.output.logits[b, -1 if side == "left" else length - 1]
            _near(
                last, one.output.logits[0, -1], f"the last logits of prompt {b} in a batch padded on the {side}", near
            )


def padding(trial: Trial, near: float | None = None) -> None:
    """Whatever the padding contains, on either side: the same tokens are kept, and real columns do not change."""
    near = tolerance(trial) if near is None else near
    for side in ("left", "right"):
        inputs = padded(trial.inputs, side)
        gone = inputs["attention_mask"] == 0
        noise = torch.randint(3, 100, gone.shape, generator=torch.Generator().manual_seed(7))
        run = trial.run(inputs)
        other = trial.run(dict(inputs, input_ids=torch.where(gone, noise, inputs["input_ids"])))
        for b, length in enumerate(run.report.prompts_after):
            real = slice(-length, None) if side == "left" else slice(length)
            what = f"prompt {b} with other ids in the padding on the {side}"
            _same_kept(run.kept(b), other.kept(b), what)
            _near(other.output.logits[b, real], run.output.logits[b, real], f"the logits of {what}", near)


def deterministic(trial: Trial) -> None:
    """A second run is bit-equal, whatever random numbers were drawn before."""
    runs = []
    for seed in (1, 2):
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            runs.append(trial.run())
    first, second = runs
    for b in range(len(IMAGES)):
        _same_kept(first.kept(b), second.kept(b), f"prompt {b} in a second run")
    if not torch.equal(first.output.logits, second.output.logits):
        raise Violation("a second run keeps the same tokens and gives different logits")


def keep_all(trial: Trial) -> None:
    """keep=1.0 leaves the model's output exactly as it was."""
    stock = forward(trial.model, trial.inputs).logits
    with trial.on(keep=1.0):
        if not torch.equal(forward(trial.model, trial.inputs).logits, stock):
            raise Violation("keep=1.0 changes the logits")


def decoding(trial: Trial, near: float | None = None) -> None:
    """Greedy steps on the pruned cache give the logits of full forwards over prompt and text so far, with the same
    tokens kept."""
    near = tolerance(trial) if near is None else near
    with trial.on():
        choices = watch(trial.model)
        cached = generate(trial.model, trial.inputs, STEPS)
        chosen = [choice.selection for choice in choices]
    for step in range(STEPS):
        with trial.on():
            watch(trial.model, chosen)
            again = forward(trial.model, grow(trial.inputs, cached.tokens[:, :step]))
        _near(cached.logits[step], again.logits[:, -1], f"the logits of step {step} computed anew", near)


def reported(trial: Trial) -> None:
    """The report's counts and lengths match placeholders, cache tensors and what entered the language model."""
    entered, mask = [], trial.inputs["attention_mask"]
    language = trial.tiny.family.language_model

    def record_entered(module, args, kwargs):
        entered.append((kwargs["inputs_embeds"].shape[1], real_columns(kwargs.get("attention_mask"))))

    with trial.on():
        choices = watch(trial.model)
        handle = language.register_forward_pre_hook(record_entered, with_kwargs=True)
        try:
            output = forward(trial.model, trial.inputs, use_cache=True)
        finally:
            handle.remove()
        proof = report(trial.model)
    width, packed = entered[0]
    two = packed if isinstance(packed, Tensor) and packed.ndim == 2 else None
    lengths = [width] * len(mask) if two is None else two.sum(1).tolist()
    projected = [c for c in choices if c.stage.stage.site == "projector"]
    stages = sum(len(c.selection.row(b)) for c in projected for b in range(len(c.selection.keep)))
    ids, types = trial.inputs["input_ids"], trial.inputs.get("mm_token_type_ids")
    placeholders = int(trial.tiny.family.placeholders(ids, types, trial.kind).sum())
    if not projected:  # what the encoder kept, if it drops anything
        stages = placeholders - (int(mask.sum()) - sum(lengths))
    facts = {
        "visual tokens before": (proof.tokens_before, placeholders),
        "prompts before": (proof.prompts_before, mask.sum(1).tolist()),
        "prompts at the first layer": (proof.prompts_entered, lengths),
        "prompts at the last layer": (max(proof.prompts_after), output.logits.shape[1]),
        "lengths of the KV cache": (proof.kv_lengths, cached_lengths(output.past_key_values)),
        "visual tokens that enter": (sum(i.entered for i in proof.images), stages),
    }  # fmt: skip
    for what, (claimed, actual) in facts.items():
        if claimed != actual:
            raise Violation(f"{what}: the report says {claimed}, the call had {actual}")


def removed(trial: Trial) -> None:
    """After unpatching, the model is bit-equal and nothing is left on any module or config."""
    model, inputs = trial.model, trial.inputs
    before, stock = state(model), forward(model, inputs).logits
    with trial.on():
        generate(model, inputs, 2)
    after = state(model)
    if after != before:
        raise Violation(
            f"something is left on {next(k for k in {**before, **after} if before.get(k) != after.get(k))!r}"
        )
    if not torch.equal(forward(model, inputs).logits, stock):
        raise Violation("the logits differ from those before the patch")


def _same_kept(expected: list[Tensor], actual: list[Tensor], what: str) -> None:
    for one, other in zip(expected, actual, strict=True):
        if one.tolist() != other.tolist():
            differ = sorted(set(one.tolist()) ^ set(other.tolist()))
            such_as = differ[:1] or "their order"
            raise Violation(f"{what} keeps different tokens: {len(differ)} differ, such as {such_as}")


def _near(actual: Tensor, expected: Tensor, what: str, near: float) -> None:
    far = float((actual - expected).abs().max())
    if not far <= near:
        raise Violation(f"{what} are off by {far:.2g}")
