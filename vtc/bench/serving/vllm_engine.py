"""One engine of vLLM in a process of its own, which measures what it is told to: a number of requests, some at a time.

Scheduler, model and KV cache are vLLM's, in one process without HTTP, so that a step can be looked into and nothing
else competes for the processor.
"""

import os
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

# Read when vLLM is imported; what the user set stays.
ENVIRONMENT = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Workload:
    """A cell: `count` prompts (see `vtc.bench.serving.workload`), at most `concurrency` of them in the engine."""

    concurrency: int
    count: int
    text: int
    new_tokens: int
    seed: tuple[int, ...]


@dataclass
class Seen:
    """What the engine did while a job ran. encoder: processor seconds in the model's `embed_multimodal`, None on a
    GPU, which nobody waits for."""

    blocks: int = 0
    steps: int = 0
    preempted: int = 0
    encoder: float | None = 0.0
    prompt_tokens: set = field(default_factory=set)
    first: list = field(default_factory=list)
    whole: list = field(default_factory=list)


def serve(connection: Connection, config: object, options: dict, log: Path) -> None:
    """The process: starts the engine, sends ("ready", number of KV blocks), then for each Workload ("row", dict) until
    it gets None. Trouble is sent as ("error", text). What vLLM prints goes to `log`."""
    with log.open("a") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    try:
        engine = _Engine(options)
        connection.send(("ready", engine.pool.num_gpu_blocks - 1))  # one block is never given out
        while (job := connection.recv()) is not None:
            connection.send(("row", engine.measure(config, job)))
    except BaseException as error:
        traceback.print_exc()
        connection.send(("error", f"{type(error).__name__}: {error}"))


class _Engine:
    """vLLM's LLM with a look at each step. options: of vllm.LLM."""

    def __init__(self, options: dict):
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM

        self.llm = LLM(**options, disable_log_stats=False)  # request times are part of the statistics
        scheduler = self.llm.llm_engine.engine_core.engine_core.scheduler
        self.pool = scheduler.kv_cache_manager.block_pool
        self.seen = Seen()
        self._watch_steps(scheduler)
        self.llm.apply_model(self._watch_encoder)

    def _watch_steps(self, scheduler: object) -> None:
        """Counts blocks where they are most: a step has its blocks, and what ends in it still holds its own."""
        schedule = scheduler.schedule

        def watched(*arguments, **options):
            planned = schedule(*arguments, **options)
            used = self.pool.num_gpu_blocks - 1 - self.pool.get_num_free_blocks()
            self.seen.blocks = max(self.seen.blocks, used)
            self.seen.steps += 1
            self.seen.preempted += len(getattr(planned, "preempted_req_ids", None) or ())
            return planned

        scheduler.schedule = watched

    def _watch_encoder(self, model: object) -> None:
        embed = model.embed_multimodal
        waits = next(model.parameters()).device.type == "cpu"

        def watched(**inputs):
            since = time.process_time()
            found = embed(**inputs)
            self.seen.encoder = self.seen.encoder + time.process_time() - since if waits else None
            return found

        model.embed_multimodal = watched

    def measure(self, config: object, job: Workload) -> dict:
        """Runs a job; see `vtc.bench.serving.ratios.DEFINITIONS` for what comes back."""
        from vllm import SamplingParams

        from vtc.bench.serving.workload import requests

        wanted = SamplingParams(temperature=0, max_tokens=job.new_tokens, ignore_eos=True, detokenize=False)
        prompts = list(requests(config, job.count, job.text, job.seed))
        self.seen, since = Seen(), {}
        start, worked, load = time.monotonic(), time.process_time(), os.getloadavg()[0]
        while prompts or since:
            while prompts and len(since) < job.concurrency:
                asked = time.monotonic()
                (name,) = self.llm.enqueue([prompts.pop()], wanted, use_tqdm=False)
                since[name.partition("-")[0]] = asked
            for output in self.llm.llm_engine.step():
                if output.finished:
                    self._ended(output, since.pop(output.request_id.partition("-")[0]), job)
        seconds, cpu = time.monotonic() - start, time.process_time() - worked
        seen = self.seen
        (tokens,) = seen.prompt_tokens
        return {
            "requests": job.count, "seconds": seconds, "rate": job.count / seconds, "blocks": seen.blocks,
            "prompt_tokens": tokens, "first": median(seen.first), "whole": median(seen.whole), "steps": seen.steps,
            "preempted": seen.preempted, "encoder": seen.encoder, "cpu": cpu, "load": load,
        }  # fmt: skip

    def _ended(self, output: object, asked: float, job: Workload) -> None:
        written = len(output.outputs[0].token_ids)
        if written != job.new_tokens:
            raise RuntimeError(f"request {output.request_id} has {written} tokens instead of {job.new_tokens}")
        if output.num_cached_tokens:
            raise RuntimeError(f"request {output.request_id}: {output.num_cached_tokens} tokens from the prefix cache")
        self.seen.prompt_tokens.add(len(output.prompt_token_ids))
        self.seen.first.append(output.metrics.first_token_ts - asked)
        self.seen.whole.append(time.monotonic() - asked)
