"""One vLLM engine in a process of its own: reads a JSON spec, answers its rounds of requests, writes JSON.

    python -m tests.vllm.drive SPEC RESULT

SPEC: {"engine": arguments of vllm.LLM, "rounds": [[request, ...], ...]}, or with "starts": [changes to the arguments,
...] instead of rounds: each of them is only tried to start.
A round goes into one `generate` call. A request: {"prompt": text or token ids, "images": [files], "kwargs":
mm_processor_kwargs, "uuids": multi_modal_uuids of the images, "tokens": how many to write, "extra": further
multi-modal data by name, a file of torch.save each}.
RESULT: {"start_error": None or the text, "rounds": [{"error": None or the text, "peak_blocks": KV blocks in use at
most, "resumed": requests that had been put back, both None where the core is elsewhere, "answers": [{"ids",
"prompt_tokens", "prompt_ids", "cached_tokens"}, ...]}, ...]}, or {"starts": [None or the text, ...]}.
VTC_TEST_CONTROLS in the environment names faults of `tests.vllm.controls`.
"""

import json
import os
import sys
from pathlib import Path

from tests.vllm import controls

# Here, not in `main`: a worker that is spawned imports this file and nothing else.
controls.apply(os.environ.get("VTC_TEST_CONTROLS", ""))


def prompt_of(request: dict) -> dict:
    """A request as the `prompts` argument of `generate` has it."""
    import torch
    from PIL import Image

    data = {name: torch.load(file) for name, file in request.get("extra", {}).items()}
    if request.get("images"):
        data["image"] = [Image.open(file).convert("RGB") for file in request["images"]]
    text = request["prompt"]
    prompt = {"prompt": text} if isinstance(text, str) else {"prompt_token_ids": text}
    if data:
        prompt["multi_modal_data"] = data
    if request.get("kwargs"):
        prompt["mm_processor_kwargs"] = request["kwargs"]
    if request.get("uuids"):
        prompt["multi_modal_uuids"] = {"image": request["uuids"]}
    return prompt


class Watch:
    """The most KV blocks in use and the requests that were put back and resumed, since the last `take`."""

    def __init__(self, llm):
        self.blocks = self.resumed = None
        core = getattr(llm.llm_engine.engine_core, "engine_core", None)
        if core is None:
            return
        pool, schedule = core.scheduler.kv_cache_manager.block_pool, core.scheduler.schedule

        def watched(*args, **kwargs):
            found = schedule(*args, **kwargs)
            self.blocks = max(self.blocks or 0, pool.num_gpu_blocks - 1 - pool.get_num_free_blocks())
            self.resumed = (self.resumed or 0) + len(found.scheduled_cached_reqs.resumed_req_ids)
            return found

        core.scheduler.schedule = watched

    def take(self) -> dict:
        """Of the round that has just ended; None where the engine core is in another process."""
        found = {"peak_blocks": self.blocks, "resumed": self.resumed}
        self.blocks = self.resumed = None
        return found


def answer(llm, requests: list[dict], watch: Watch) -> dict:
    """One round's part of the result; an exception of `generate` becomes its `error`."""
    from vllm import SamplingParams

    sampling = [
        SamplingParams(temperature=0.0, max_tokens=r.get("tokens", 8), ignore_eos=r.get("ignore_eos", False))
        for r in requests
    ]
    found = {"error": None, "answers": []}
    try:
        outputs = llm.generate([prompt_of(r) for r in requests], sampling, use_tqdm=False)
    except Exception as problem:
        found["error"] = f"{type(problem).__name__}: {problem}"
        return {**found, **watch.take()}
    for output in outputs:
        found["answers"].append({
            "ids": list(output.outputs[0].token_ids), "prompt_tokens": len(output.prompt_token_ids),
            "prompt_ids": list(output.prompt_token_ids), "cached_tokens": output.num_cached_tokens,
        })  # fmt: skip
    return {**found, **watch.take()}


def main(spec: dict) -> dict:
    """Starts the engine and answers the rounds."""
    if "starts" in spec:
        return {"starts": [start({**spec["engine"], **changes})[1] for changes in spec["starts"]]}
    llm, error = start(spec["engine"])
    watch = Watch(llm) if llm else None
    rounds = [answer(llm, requests, watch) for requests in spec["rounds"]] if llm else []
    return {"start_error": error, "rounds": rounds}


def start(engine: dict) -> tuple:
    """(the engine or None, None or why it does not start)."""
    from vllm import LLM

    try:
        return LLM(**engine), None
    except Exception as problem:
        return None, f"{type(problem).__name__}: {problem}"


if __name__ == "__main__":
    result = main(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(result))
