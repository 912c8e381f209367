"""The bridge to lmms-eval, used as its users would: `make test-lmms` runs this in an environment of its own, offline.

Not collected by pytest: it belongs to an environment with lmms-eval. Last run with lmms-eval 0.7.3, torch 2.13.0 (CPU),
transformers 5.23.0, datasets 5.2.0, accelerate 1.15.0 on Python 3.11.7, without torchvision and without decord.
"""

import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

import vtc
import vtc.demo
from vtc.core.errors import ConfigError, UnsupportedError
from vtc.demo import benchmark

COUNT = 13  # questions: an odd number, so that two processes get unequal shares
PLAIN, CHAT = "vtc_plain", "vtc_chat"
SYSTEM = "answer in one word"

TASK = """
task: {name}
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function vtc_check_utils.visual
doc_to_text: !function vtc_check_utils.text
{more}doc_to_target: answer
process_results: !function vtc_check_utils.score
generation_kwargs: {{max_new_tokens: 4{until}}}
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""

UTILS = f"""
def visual(doc):
    return [doc["image"].convert("RGB")] if doc["image"] is not None else []


def text(doc):
    return doc["question"]


def messages(doc):
    first, _, rest = doc["question"].partition(" ")
    picture = [{{"type": "image", "url": picture}} for picture in visual(doc)]
    content = [{{"type": "text", "text": first}}, *picture, {{"type": "text", "text": rest}}]
    system = [{{"role": "system", "content": [{{"type": "text", "text": "{SYSTEM}"}}]}}] if doc["number"] % 2 else []
    return [*system, {{"role": "user", "content": content}}]


def score(doc, results):
    return {{"acc": float(results[0] == doc["answer"])}}
"""

# Makes the third generate() call of a process raise; the command line of lmms-eval then goes on as usual.
BROKEN = """
from lmms_eval.cli.dispatch import main

from vtc.eval.models import Loaded

calls, answer = [], Loaded.answer


def failing(self, *arguments):
    calls.append(1)
    if len(calls) == 3:
        raise RuntimeError("the third call fails")
    return answer(self, *arguments)


Loaded.answer = failing
if __name__ == "__main__":
    main()
"""


def questions() -> list[dict]:
    """Docs of the demo benchmark; one of them has no picture."""
    docs = [dict(doc, number=number) for number, doc in enumerate(benchmark.samples("test", COUNT))]
    docs[5]["image"] = None
    return docs


def write_tasks(folder: Path) -> None:
    """Two tasks on the same questions: pictures before the text, and chats with the picture inside the text."""
    from datasets import Dataset, Features, Image, Value

    kinds = {name: Value("string") for name in ("id", "question", "answer", "type")}
    features = Features({**kinds, "number": Value("int64"), "image": Image()})
    data = folder / "questions.parquet"
    Dataset.from_list(questions(), features=features).to_parquet(data)
    chat = "doc_to_messages: !function vtc_check_utils.messages\n"
    (folder / f"{PLAIN}.yaml").write_text(TASK.format(name=PLAIN, data=data, more="", until=""))
    (folder / f"{CHAT}.yaml").write_text(TASK.format(name=CHAT, data=data, more=chat, until=', until: ["e", "</s>"]'))
    (folder / "vtc_check_utils.py").write_text(UTILS)
    (folder / "broken.py").write_text(BROKEN)


def ask(folder: Path, name: str, model_args: str, *more: str, launch: tuple = ("-m", "lmms_eval")):
    """One run of lmms-eval on both tasks; its logs go to `folder/name`."""
    command = [
        sys.executable, *launch, "--model", "vtc", "--model_args", model_args, "--tasks", f"{PLAIN},{CHAT}",
        "--include_path", str(folder), "--output_path", str(folder / name), "--log_samples", *more,
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "TOKENIZERS_PARALLELISM": "false"}
    env = {**os.environ, **offline, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=900)


def answers(folder: Path, name: str, *arguments, **options) -> dict[str, list[tuple]]:
    """Per task (answer, tokens of the prompt, tokens of the answer) of every question, in order; the run must pass."""
    done = ask(folder, name, *arguments, **options)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    found = {}
    for task in (PLAIN, CHAT):
        (log,) = (folder / name).rglob(f"*samples_{task}.jsonl")
        rows = sorted(map(json.loads, log.read_text().splitlines()), key=lambda row: row["doc_id"])
        assert [row["doc_id"] for row in rows] == list(range(COUNT)), f"{name}: samples {[r['doc_id'] for r in rows]}"
        counts = [row["token_counts"][0] for row in rows]
        found[task] = [
            (row["filtered_resps"], count["input_tokens"], count["output_tokens"]) for row, count in zip(rows, counts)
        ]
    return found


def throughput(folder: Path, name: str) -> dict:
    """What the results of a run say of time and tokens."""
    (results,) = (folder / name).rglob("*_results.json")
    return json.loads(results.read_text())["throughput"]


def expected(keep: float | None) -> dict[str, list[tuple]]:
    """What `answers` should be: stock generate(), one question at a time, patched by vtc.patch if `keep` is given."""
    model, processor = vtc.demo.load()
    if keep is not None:
        vtc.patch(model, "hiprune", keep=keep, processor=processor)
    found = {PLAIN: [], CHAT: []}
    for doc in questions():
        picture = [] if doc["image"] is None else [{"type": "image"}]
        first, _, rest = doc["question"].partition(" ")
        system = [{"role": "system", "content": [{"type": "text", "text": SYSTEM}]}] if doc["number"] % 2 else []
        plain = [{"role": "user", "content": [*picture, {"type": "text", "text": doc["question"]}]}]
        parts = [{"type": "text", "text": first}, *picture, {"type": "text", "text": rest}]
        for task, turns in ((PLAIN, plain), (CHAT, [*system, {"role": "user", "content": parts}])):
            text = processor.apply_chat_template(turns, add_generation_prompt=True)
            given = {"images": doc["image"]} if picture else {}
            special = not text.startswith(processor.tokenizer.bos_token)
            inputs = processor(text=text, **given, add_special_tokens=special, return_tensors="pt")
            length = inputs["input_ids"].shape[1]
            with torch.inference_mode():
                new = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, length:]
            seen = vtc.report(model).prompts_after[0] if keep is not None and picture else length
            answer = processor.decode(new, skip_special_tokens=True)
            found[task].append(((answer.split("e")[0] if task == CHAT else answer).strip(), seen, len(new)))
    return found


def check_command_line(folder: Path) -> None:
    """Runs of the command line against plain generate(), against each other, and with what must fail."""
    hiprune = "pretrained=demo,strategy=hiprune,keep=0.25,device=cpu"
    plain, pruned = expected(None), expected(0.25)
    dropped = {row[1] - small[1] for row, small in zip(plain[PLAIN], pruned[PLAIN])}
    assert dropped == {0, 147}, dropped  # 196 visual tokens to 49; 0 where there is no picture
    none = answers(folder, "none", "pretrained=demo,device=cpu")
    assert none == plain, (none, plain)
    say("strategy none: the answers and token counts of plain generate()")
    one = answers(folder, "one", hiprune)
    assert one == pruned, (one, pruned)
    assert [row[0] for task in one.values() for row in task] != [row[0] for task in none.values() for row in task]
    assert (throughput(folder, "none")["avg_visual_tokens"], throughput(folder, "none")["avg_visual_tokens_kept"]) == (
        196, 196,
    )  # fmt: skip
    assert throughput(folder, "one")["avg_visual_tokens_kept"] == 49
    say("hiprune, keep=0.25: the answers of vtc.patch and generate(), 49 of 196 visual tokens")
    assert answers(folder, "four", hiprune, "--batch_size", "4") == one
    say("batch_size 4 equals 1")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "lmms_eval")
    assert answers(folder, "torchrun", hiprune, "--batch_size", "4", launch=torchrun) == one
    say(f"torchrun with 2 processes: all {COUNT} samples of each task, equal to 1 process")
    accelerate = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--main_process_port", "0")
    assert answers(folder, "accelerate", hiprune, launch=(*accelerate, "-m", "lmms_eval")) == one
    say("accelerate launch with 2 processes: the same")

    wrong = {
        "strategy": ("pretrained=demo,strategy=hiprun,device=cpu", "did you mean 'hiprune'"),
        "knob": ("pretrained=demo,strategy=hiprune,alpah=1,device=cpu", "'alpah'"),
        "keep": ("pretrained=demo,keep=0.25,device=cpu", "keep=0.25 without a strategy"),
        "model": ("pretrained=nowhere,device=cpu", "model 'nowhere' does not exist"),
    }
    for name, (arguments, words) in wrong.items():
        failed = ask(folder, f"wrong-{name}", arguments)
        last = failed.stderr.strip().splitlines()[-1]
        assert failed.returncode != 0, f"exit code 0: {last}"
        assert last.startswith("vtc: "), last
        assert words in last, last
        assert "Traceback" not in failed.stderr + failed.stdout
        say(f"wrong {name}: exit code {failed.returncode}, {last[:90]!r}")
    broken = str(folder / "broken.py")
    for name, launch in (("1", (broken,)), ("2", (*accelerate, broken))):
        failed = ask(folder, f"broken-{name}", hiprune, launch=launch)
        assert failed.returncode != 0, "an exception while generating, and the exit code is 0"
        assert "vtc: RuntimeError: the third call fails" in failed.stderr, failed.stderr[-3000:]
        assert not list(folder.glob(f"broken-{name}/**/*_results.json"))
        say(f"an exception in generate(), {name} process(es): exit code {failed.returncode}, no results")


def check_class() -> None:
    """The class used from Python, where its exceptions stay what they are."""
    from lmms_eval.api.instance import Instance

    from vtc.eval.lmms.bridge import VtcModel, cut

    model = VtcModel("demo", "hiprune+transprune", device="cpu", batch_size="2", **{"hiprune.keep": 0.5})
    doc = next(iter(benchmark.samples("test", 1)))
    model.task_dict["task"] = {"test": [doc]}

    def request(gen: dict, *parts: dict, role: str = "user") -> Instance:
        turn = {"role": role, "content": [{"type": "text", "text": doc["question"]}, *parts]}
        arguments = ("", lambda doc: [turn], gen, 0, "task", "test")
        return Instance("generate_until", arguments, 0, {"task": "task", "doc_id": 0, "repeats": 1})

    picture = {"type": "image", "url": doc["image"]}
    gens = ({"max_new_tokens": 4}, {"max_new_tokens": 1}, {"num_beams": 2, "max_new_tokens": 4},
            {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 4, "image_aspect_ratio": "pad"}, None)  # fmt: skip
    found = model.generate_until([request(gen, picture) for gen in gens])
    assert [r.token_counts.output_tokens > 0 for r in found] == [True] * len(gens)
    assert found[1].token_counts.output_tokens == 1
    beams = [request(gens[2], picture), request(gens[2])]
    together, apart = model.generate_until(beams), [model.generate_until([one])[0] for one in beams]
    assert together == apart, (together, apart)
    refused = {
        "video": lambda: model.generate_until([request({}, {"type": "video", "url": "a.mp4"})]),
        "assistant": lambda: model.generate_until([request({}, role="assistant")]),
        "loglikelihood": lambda: model.loglikelihood([]),
        "one round": lambda: model.generate_until_multi_round([]),
    }
    for words, call in refused.items():
        assert words in raised(UnsupportedError, call)
    assert issubclass(UnsupportedError, NotImplementedError)
    assert "batch_size='auto'" in raised(ConfigError, lambda: VtcModel("demo", batch_size="auto"))
    assert "pretrained" in raised(ConfigError, VtcModel)
    model.clean()
    assert model.device == torch.device("cpu")

    assert [cut(" a b\n\nc ", stops) for stops in (None, "b", ["c", "b", ""], ["\n\n"], ["\n\n", "x"])] == [
        "a b\n\nc", "a", "a", "a b\n\nc", "a b",
    ]  # fmt: skip
    say("the class from Python: groups, beams, sampling, refusals, text cuts")


def raised(kind: type, call) -> str:
    """The text of the exception that `call` must raise."""
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


def say(text: str) -> None:
    """One line per thing that holds."""
    print(f"  {text}", flush=True)


def main() -> None:
    """Run all checks; the first failure ends the run."""
    names = ("lmms_eval", "torch", "transformers", "datasets", "accelerate")
    print(", ".join(f"{name} {version(name)}" for name in names), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_HOME"] = str(Path(folder) / "home")
        write_tasks(Path(folder))
        check_command_line(Path(folder))
    check_class()
    print("bridge to lmms-eval: all checks passed")


if __name__ == "__main__":
    main()
