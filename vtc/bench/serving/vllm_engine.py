"""One vLLM engine in a process of its own, which measures the workloads that it is sent.

Scheduler, model and KV cache are vLLM's, in one process without HTTP, so that each step can be observed and nothing
else competes for the processor.
"""

import os
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vtc.bench.serving.workload import PromptForm

# Read when vLLM is imported; what the user has set takes precedence.
ENVIRONMENT = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Workload:
    """A cell: `count` prompts of a form, at most `concurrency` of them in the engine at once."""

    form: "PromptForm"
    concurrency: int
    count: int
    text: int
    new_tokens: int
    seed: tuple[int, ...]


@dataclass
class Observed:
    """What the engine did while a job ran. encoder: processor seconds in the model's `embed_multimodal`, None on a
    GPU, which works asynchronously."""

    blocks: int = 0
    steps: int = 0
    preempted: int = 0
    encoder: float | None = 0.0
    prompt_tokens: set = field(default_factory=set)
    first: list = field(default_factory=list)
    whole: list = field(default_factory=list)


def serve(connection: Connection, options: dict, log: Path) -> None:
    """The process: starts the engine, sends ("ready", number of KV blocks), then answers each Workload with
    ("row", dict) until it receives None. A failure is sent as ("error", text). What vLLM prints goes to `log`."""
    with log.open("a") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    try:
        engine = _Engine(options)
        connection.send(("ready", engine.pool.num_gpu_blocks - 1))  # vLLM keeps one block for itself
        while (job := connection.recv()) is not None:
            connection.send(("row", engine.measure(job)))
    except BaseException as error:
        traceback.print_exc()
        connection.send(("error", f"{type(error).__name__}: {error}"))


class _Engine:
    """vLLM's LLM with each step observed. options: the arguments of vllm.LLM."""

    def __init__(self, options: dict):
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM

        self.llm = LLM(**options, disable_log_stats=False)  # request times are part of the statistics
        scheduler = self.llm.llm_engine.engine_core.engine_core.scheduler
        self.pool = scheduler.kv_cache_manager.block_pool
        self.observed = Observed()
        self._watch_steps(scheduler)
        self.llm.apply_model(self._watch_encoder)

    def _watch_steps(self, scheduler: object) -> None:
        """Counts blocks when the most are in use: after a step's blocks are allocated, before those of the requests
        that end in it are freed."""
        schedule = scheduler.schedule

        def watched(*arguments, **options):
            planned = schedule(*arguments, **options)
            used = self.pool.num_gpu_blocks - 1 - self.pool.get_num_free_blocks()
            self.observed.blocks = max(self.observed.blocks, used)
            self.observed.steps += 1
            self.observed.preempted += len(getattr(planned, "preempted_req_ids", None) or ())
            return planned

        scheduler.schedule = watched

    def _watch_encoder(self, model: object) -> None:
        embed = model.embed_multimodal
        synchronous = next(model.parameters()).device.type == "cpu"

        def watched(**inputs):
            start = time.process_time()
            embeddings = embed(**inputs)
            seconds = time.process_time() - start
            self.observed.encoder = self.observed.encoder + seconds if synchronous else None
            return embeddings

        model.embed_multimodal = watched

    def measure(self, job: Workload) -> dict:
        """Runs a job; the figures are defined in `vtc.bench.serving.ratios.DEFINITIONS`."""
        from vllm import SamplingParams

        from vtc.bench.serving.workload import requests

        sampling = SamplingParams(temperature=0, max_tokens=job.new_tokens, ignore_eos=True, detokenize=False)
        prompts = list(requests(job.form, job.count, job.text, job.seed))
        self.observed, enqueued = Observed(), {}
        start, worked, load = time.monotonic(), time.process_time(), os.getloadavg()[0]
        while prompts or enqueued:
            while prompts and len(enqueued) < job.concurrency:
                now = time.monotonic()
                (name,) = self.llm.enqueue([prompts.pop()], sampling, use_tqdm=False)
                enqueued[name.partition("-")[0]] = now
            for output in self.llm.llm_engine.step():
                if output.finished:
                    self._ended(output, enqueued.pop(output.request_id.partition("-")[0]), job)
        seconds, cpu = time.monotonic() - start, time.process_time() - worked
        observed = self.observed
        (tokens,) = observed.prompt_tokens
        return {
            "requests": job.count, "seconds": seconds, "rate": job.count / seconds,
            "blocks": observed.blocks, "prompt_tokens": tokens, "first": median(observed.first),
            "whole": median(observed.whole), "steps": observed.steps, "preempted": observed.preempted,
            "encoder": observed.encoder, "cpu": cpu, "load": load,
        }  # fmt: skip

    def _ended(self, output: object, enqueued: float, job: Workload) -> None:
        written = len(output.outputs[0].token_ids)
        if written != job.new_tokens:
            raise RuntimeError(f"request {output.request_id} has {written} tokens instead of {job.new_tokens}")
        if output.num_cached_tokens:
            raise RuntimeError(f"request {output.request_id}: {output.num_cached_tokens} tokens from the prefix cache")
        self.observed.prompt_tokens.add(len(output.prompt_token_ids))
        self.observed.first.append(output.metrics.first_token_ts - enqueued)
        self.observed.whole.append(time.monotonic() - enqueued)
