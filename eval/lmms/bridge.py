"""The class behind lmms-eval's `--model vtc`; its arguments are documented in `vtc.eval.lmms`."""

import functools
import json
import os
import re
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from loguru import logger
from PIL import Image
from tqdm import tqdm

import vtc
from vtc.core.errors import ConfigError, PatchError, UnsupportedError, VtcError, shown
from vtc.eval.models import Loaded, load
from vtc.eval.results import counts
from vtc.io.plain_yaml import parse

NONE = "none"
SAMPLING = ("temperature", "top_p", "top_k")
SEARCH = ("num_beams", "repetition_penalty")
USED = {"max_new_tokens", "until", "do_sample", *SAMPLING, *SEARCH}
FILLED_IN = ["\n\n"]  # the `until` that lmms-eval fills in for tasks that set none


def ends_the_run(method: Callable) -> Callable:
    """Makes exceptions of `method` end lmms-eval's command line with exit code 1 and a one-line message.

    lmms-eval itself prints exceptions and exits with 0; only a SystemExit gets through. Outside its command line the
    exception is raised unchanged.
    """

    @functools.wraps(method)
    def run(*args, **kwargs):
        try:
            return method(*args, **kwargs)
        except Exception as error:
            if "lmms_eval.__main__" not in sys.modules:
                raise
            if isinstance(error, VtcError):
                raise SystemExit(f"vtc: {error}") from error
            traceback.print_exc()
            raise SystemExit(f"vtc: {type(error).__name__}: {' '.join(str(error).split())}") from error

    return run


def refuses(why: str) -> Callable:
    """A method for requests of an unsupported kind; it raises UnsupportedError, a NotImplementedError."""

    @ends_the_run
    def method(self, requests: list[Instance]) -> list:
        raise UnsupportedError(f"--model vtc {why}; possible: tasks of output_type generate_until")

    return method


@dataclass(frozen=True)
class Chat:
    """One request as a prompt. parts: the user's turn, with None in place of each of the PIL `pictures`."""

    system: str | None
    parts: list[str | None]
    pictures: list


class VtcModel(lmms):
    """A model of lmms-eval whose visual tokens are pruned by a strategy of vtc, or not at all.

    Everything that can be checked is checked before the first sample: raises ConfigError or UnsupportedError in one
    line. Rank and world size are set by lmms-eval's evaluator.
    """

    is_simple = False

    @ends_the_run
    def __init__(
        self,
        pretrained: str | None = None,
        strategy: str = NONE,
        keep: float | int | str | None = None,
        *,
        dtype: str | None = None,
        attn_implementation: str | None = None,
        device: str | None = None,
        device_map: str | None = None,
        batch_size: int | str = 1,
        revision: str | None = None,
        trust_remote_code: bool = False,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_new_tokens: int = 1024,
        **knobs,
    ):
        super().__init__()
        if not pretrained:
            raise ConfigError("pretrained=... is missing in --model_args; possible: demo, a directory, a hub id")
        self._batch_size = _whole("batch_size", batch_size)
        self.max_new_tokens = _whole("max_new_tokens", max_new_tokens)
        overrides = {key: _read(key, value) for key, value in {"keep": keep, **knobs}.items() if value is not None}
        self.strategy = strategy
        if strategy != NONE:
            vtc.load_strategy(strategy, **overrides)
        elif overrides:
            name, value = next(iter(overrides.items()))
            raise ConfigError(f"{name}={value!r} without a strategy; possible: strategy={', '.join(vtc.strategies())}")
        arguments = {
            "dtype": dtype, "attn_implementation": attn_implementation, "device_map": device_map, "revision": revision,
            "min_pixels": min_pixels, "max_pixels": max_pixels,
        }  # fmt: skip
        arguments = {key: value for key, value in arguments.items() if value is not None}
        self.loaded: Loaded = load(pretrained, {"trust_remote_code": trust_remote_code, **arguments}, _device(device))
        self._device = self.loaded.model.device
        self.prunes = False
        if strategy != NONE:
            if self.loaded.unsupported is not None:
                raise self.loaded.unsupported
            vtc.patch(self.loaded.model, strategy, processor=self.loaded.processor, **overrides)
            self.prunes = vtc.load_strategy(strategy, self.loaded.family.name, **overrides).drops
        self._ignored: set[str] = set()

    @property
    def device(self) -> torch.device:
        """The device of the inputs, and of the tensors that lmms-eval gathers."""
        return self._device

    @property
    def tokenizer(self):
        """The processor's tokenizer."""
        return self.loaded.processor.tokenizer

    @property
    def batch_size(self) -> int:
        """Prompts per generate() call."""
        return self._batch_size

    def clean(self) -> None:
        """Frees the model; lmms-eval calls this after the last answer, as a judge model may need the memory."""
        self.loaded = None
        super().clean()

    @ends_the_run
    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """The answers, in the order of the requests; requests of equal generation_kwargs share batches.

        token_counts: of the prompt, with the mean number of visual tokens per decoder layer, and of the answer.
        Raises PatchError if a budget below 1 dropped nothing, and whatever generate() raises.
        """
        groups = defaultdict(list)
        for index, request in enumerate(requests):
            groups[json.dumps(request.args[2], sort_keys=True, default=str)].append(index)
        size = self._batch_size
        batches = [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]
        results: list[GenerationResult | None] = [None] * len(requests)
        self._visual: list[tuple[int, float]] = []
        seconds = 0.0
        for batch in tqdm(batches, desc=f"vtc, strategy {self.strategy}", disable=self.rank != 0):
            gen = requests[batch[0]].args[2] or {}
            chats = {index: self._chat(requests[index]) for index in batch}
            for system in dict.fromkeys(chat.system for chat in chats.values()):
                part = [index for index in batch if chats[index].system == system]
                began = time.perf_counter()
                for index, result in zip(part, self._answer([chats[index] for index in part], system, gen)):
                    results[index] = result
                seconds += time.perf_counter() - began
        self._log(seconds, sum(result.token_counts.output_tokens for result in results))
        return results

    loglikelihood = refuses("has no loglikelihood")
    generate_until_multi_round = refuses("answers in one round")
    generate_visual_cot = refuses("draws no pictures")

    def _chat(self, request: Instance) -> Chat:
        _, doc_to_messages, _, doc_id, task, split = request.args
        messages = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id])).messages
        system = [part.text for m in messages if m.role == "system" for part in m.content if part.type == "text"]
        content = [part for m in messages if m.role != "system" for part in m.content]
        other = {m.role for m in messages} - {"system", "user"} | {part.type for part in content} - {"text", "image"}
        if other:
            raise UnsupportedError(
                f"sample {doc_id} of task {task!r} has {', '.join(sorted(other))}; possible: a user's text and pictures"
            )
        pictures = [_picture(part.url) for part in content if part.type == "image"]
        parts = [None if part.type == "image" else part.text for part in content]
        return Chat("\n".join(system) if system else None, parts, pictures)

    def _answer(self, chats: Sequence[Chat], system: str | None, gen: dict) -> Iterator[GenerationResult]:
        loaded = self.loaded
        inputs = loaded.encode([chat.parts for chat in chats], [chat.pictures for chat in chats], system=system)
        longest, search = gen.get("max_new_tokens") or self.max_new_tokens, self._search(gen)
        with torch.inference_mode():
            if search:
                made = loaded.model.generate(**inputs, max_new_tokens=longest, **search)
                answers = made[:, inputs["input_ids"].shape[1] :]
            else:
                answers = loaded.answer(inputs, longest)
        lengths = [float(n) for n in inputs["attention_mask"].sum(1).tolist()]
        visual = [(n, n) for n in loaded.visual_tokens(inputs)]
        if self.prunes and any(chat.pictures for chat in chats):
            report = vtc.report(loaded.model)
            rows = counts.of_report(report)
            rows = rows[:: len(rows) // len(chats)]  # the first beam of each prompt
            visual = [(row["visual_before"], row["visual_average"]) for row in rows]
            for chat, (before, average) in zip(chats, visual):
                if counts.dropped_nothing(report.keep, len(chat.pictures), before, average):
                    budget = f"keep={report.keep!r} asks for fewer"
                    raise PatchError(f"all {before} visual tokens of a prompt were kept where {budget}")
        self._visual += [pair for chat, pair in zip(chats, visual) if chat.pictures and None not in pair]
        texts = loaded.processor.batch_decode(answers, skip_special_tokens=True)
        for text, length, pair, written in zip(texts, lengths, visual, loaded.new_tokens(answers)):
            input_tokens = length if None in pair else length - pair[0] + pair[1]
            tokens = TokenCounts(input_tokens=round(input_tokens), output_tokens=written)
            yield GenerationResult(text=cut(text, gen.get("until")), token_counts=tokens)

    def _search(self, gen: dict) -> dict:
        """generate()'s arguments for a task that does not use greedy decoding; else empty."""
        ignored = sorted(set(gen) - USED - self._ignored)
        if ignored:
            self._ignored |= set(ignored)
            logger.warning(f"vtc: generation_kwargs without a meaning here, ignored: {', '.join(ignored)}")
        arguments = {key: gen[key] for key in SEARCH if gen.get(key) not in (None, 1)}
        if gen.get("temperature") and gen.get("do_sample") is not False:
            return {**arguments, "do_sample": True, **{key: gen[key] for key in SAMPLING if gen.get(key) is not None}}
        return {**arguments, "do_sample": False, **dict.fromkeys(SAMPLING)} if arguments else {}

    def _log(self, seconds: float, written: int) -> None:
        """Adds to the `throughput` of lmms-eval's results: time, and rank 0's mean visual tokens per prompt."""
        extra = {}
        if self._visual:
            before, average = (sum(column) / len(self._visual) for column in zip(*self._visual))
            extra = {"visual_tokens": before, "visual_tokens_kept": average}
        log_metrics(seconds, written, written / seconds if seconds else 0.0, additional_metrics=extra)


def cut(text: str, until: str | Sequence[str] | None) -> str:
    """The text up to the first of the `until` texts, without white space around it; see `vtc.eval.lmms`."""
    stops = [until] if isinstance(until, str) else list(until or [])
    if stops != FILLED_IN:
        for stop in filter(None, stops):
            text = text.partition(stop)[0]
    return text.strip()


def _picture(source: object) -> Image.Image:
    return source if isinstance(source, Image.Image) else Image.open(source)


def _whole(name: str, value: object) -> int:
    text = str(value)
    if not re.fullmatch("[0-9]{1,18}", text) or int(text) < 1:
        raise ConfigError(f"{name}={shown(value)} is not possible; possible: a whole number >= 1")
    return int(text)


def _read(key: str, value: object) -> object:
    """A value of --model_args: lmms-eval parses numbers and true/false; text is parsed as YAML for lists and null."""
    where = f"{key}={shown(value)} in --model_args"
    return parse(value, where) if isinstance(value, str) else value


def _device(name: str | None) -> str | None:
    """One GPU per process; None leaves the choice to `load`."""
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1 and torch.cuda.is_available()
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if several and name in (None, "cuda") else name
