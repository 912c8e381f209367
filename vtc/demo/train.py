"""Train the demo model from nothing: `python -m vtc.demo.train --out DIR --seed 0`.

Draws the scenes, pretrains the vision tower (`pretrain_vision`), caches its features, trains projector and language
model (`train_language`), and exports to DIR. Every 100 to 200 steps a checkpoint is written to DIR/state.pt; the same
command continues from it. Steps draw their batches from (seed, stage, step), so an interrupted run sees the same ones.
Two processes of one thread each share every batch: on cores that other work also uses this is much faster than two
threads that wait for each other.
"""

import argparse
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from vtc.demo.architecture import build_model, export
from vtc.demo.pretrain_vision import cache_features, pretrain
from vtc.demo.train_language import accuracy, teach
from vtc.demo.training_data import TOKENS, Shard, make_scenes
from vtc.io.files import replacing
from vtc.io.terminal import say

SCENES = 40_000  # for the tower
LANGUAGE_SCENES = 16_000  # of these, for the language model
CHECK_SCENES = 256  # of the `tune` split, to report on


def _log(line: str) -> None:
    say(line)


def _report(model, seed: int) -> None:
    """Print accuracy on `tune` with all tokens and with a random quarter, positions renumbered and kept."""
    data = make_scenes("tune", 0, CHECK_SCENES)
    features = cache_features(model, data.images)
    rng = np.random.default_rng([seed, 4])
    quarter = np.sort(rng.random((CHECK_SCENES, TOKENS)).argsort(1)[:, : TOKENS // 4], 1)
    for name, keep, renumber in (
        ("all tokens", None, True),
        ("random quarter, renumbered", torch.from_numpy(quarter), True),
        ("random quarter, positions kept", torch.from_numpy(quarter), False),
    ):
        shares = accuracy(model, data, features, keep, renumber)
        _log(f"tune, {name}: " + " ".join(f"{kind} {share:.3f}" for kind, share in shares.items()))


def train(out: Path, seed: int, vision_steps: int, language_steps: int, part: Shard) -> None:
    """Run or continue, as process `part`, the training whose checkpoint is in `out`; export to `out` when done."""
    checkpoint = out / "state.pt"
    log = _log if part.rank == 0 else (lambda line: None)
    model = build_model(seed)
    state: dict = {}
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        log(f"continue from {checkpoint}")

    def save(**stages: dict) -> None:
        if part.rank == 0:
            with replacing(checkpoint) as file:
                torch.save({"model": model.state_dict(), **stages}, file)

    started = time.perf_counter()
    vision, language = state.get("vision", {}), state.get("language", {})
    seeing = not language and vision.get("step", 0) < vision_steps
    first, count = part.rank * SCENES // part.of, (SCENES if seeing else LANGUAGE_SCENES) // part.of
    data = make_scenes("train", first, first + count)
    log(f"drew {count * part.of} scenes in {time.perf_counter() - started:.0f} s")
    if seeing:
        pretrain(model, data, vision_steps, seed, part, log, vision, lambda progress: save(vision=progress))
        save(vision={"step": vision_steps})
    log(f"vision done after {time.perf_counter() - started:.0f} s")
    features = cache_features(model, data.images[: LANGUAGE_SCENES // part.of])
    log(f"cached features after {time.perf_counter() - started:.0f} s")
    if language.get("step", 0) < language_steps:
        teach(
            model, data, features, language_steps, seed, part, log, language, lambda progress: save(language=progress)
        )
    if part.rank == 0:
        export(model, out)
        log(f"exported after {time.perf_counter() - started:.0f} s")
        _report(model, seed)


def _process(rank: int, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    if args.processes > 1:
        # Process 0 waits long for none: the others do the same work; the hour covers a machine that is shared.
        store = f"file://{(args.out / 'rendezvous').resolve()}"
        dist.init_process_group("gloo", store, timedelta(hours=1), world_size=args.processes, rank=rank)
    train(args.out, args.seed, args.vision_steps, args.language_steps, Shard(rank, args.processes))


def main() -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint and model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vision-steps", type=int, default=800)
    parser.add_argument("--language-steps", type=int, default=2400)
    parser.add_argument("--processes", type=int, choices=(1, 2, 4), default=2, help="one CPU thread each")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "rendezvous").unlink(missing_ok=True)
    torch.multiprocessing.spawn(_process, (args,), nprocs=args.processes)


if __name__ == "__main__":
    main()
