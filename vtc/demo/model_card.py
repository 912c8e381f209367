"""Measure the shipped model: `python -m vtc.demo.model_card --limit 2100` prints the tables of its card.

All tokens: stock `generate` on what the processor makes. Budgets: tokens dropped between projector and language model,
the rest numbered anew, then stock `generate` on the embeddings. Float32, greedy. Two simple rankings only, random and
the [CLS] row of the second-to-last layer; the other methods belong to the evaluation of the library.
"""

import argparse

import torch

from vtc.demo import MODEL_DIR, load
from vtc.demo.architecture import prompt
from vtc.demo.benchmark import is_correct, majority, samples
from vtc.demo.questions import TYPES
from vtc.io.terminal import say

BUDGETS = (98, 49, 22, 10)
BATCH = 60


@torch.no_grad()
def answer(model, processor, rows: list[dict]) -> list[str]:
    """Answers of the unmodified model to samples, through the processor and `generate`, left-padded into one batch."""
    inputs = processor(
        images=[row["image"] for row in rows],
        text=[prompt(row["question"]) for row in rows],
        padding=True,
        return_tensors="pt",
    )
    out = model.generate(**inputs)
    return processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@torch.no_grad()
def look(model, processor, rows: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """Projected features [B, N, D] and the [CLS] attention of the second-to-last layer, head mean, [B, N].

    Needs a model that was loaded with `attn_implementation="eager"`.
    """
    pixels = processor.image_processor([row["image"] for row in rows], return_tensors="pt")["pixel_values"]
    outputs = model.model.vision_tower(pixels, output_hidden_states=True, output_attentions=True)
    features = model.model.multi_modal_projector(outputs.hidden_states[-2][:, 1:])
    return features, outputs.attentions[-2][:, :, 0, 1:].mean(1)


@torch.no_grad()
def answer_pruned(model, processor, features: torch.Tensor, keep: torch.Tensor, questions: list[str]) -> list[str]:
    """Answers to B questions when the language model sees only the tokens `keep` [B, K] of `features` [B, N, D]."""
    kept = features.gather(1, keep[..., None].expand(-1, -1, features.shape[-1]))
    text = processor.tokenizer([prompt(question) for question in questions], padding=True, return_tensors="pt")
    embed = model.get_input_embeddings()
    embeds, masks = [], []
    for ids, mask, image in zip(text["input_ids"], text["attention_mask"], kept, strict=True):
        at = int((ids == model.config.image_token_id).nonzero())
        embeds.append(torch.cat((embed(ids[:at]), image, embed(ids[at + 1 :]))))
        masks.append(torch.cat((mask[:at], mask.new_ones(len(image)), mask[at + 1 :])))
    out = model.generate(inputs_embeds=torch.stack(embeds), attention_mask=torch.stack(masks))
    return processor.batch_decode(out, skip_special_tokens=True)


def shares(rows: list[dict], answers: list[str]) -> dict[str, float]:
    """Accuracy, 0 to 1, by type, and `macro`, their mean."""
    by_type = {kind: [] for kind in TYPES}
    for row, text in zip(rows, answers, strict=True):
        by_type[row["type"]].append(is_correct(row["answer"], text))
    accuracies = {kind: sum(hits) / len(hits) for kind, hits in by_type.items() if hits}
    return accuracies | {"macro": sum(accuracies.values()) / len(accuracies)}


def table(rows: dict[str, dict[str, float]]) -> str:
    """A Markdown table of accuracies in per cent, one line for each key of `rows`, macro first."""
    heads = ["macro", *TYPES]
    lines = ["| tokens | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(f"{100 * row[head]:.1f}" for head in heads) + " |" for name, row in rows.items()
    ]
    return "\n".join(lines)


def measure(folder, split: str, limit: int, seeds: int) -> dict[str, dict[str, float]]:
    """Accuracies by type of the model in `folder` on `limit` samples: all tokens, then budgets, random and [CLS]."""
    model, processor = load(folder=folder, attn_implementation="eager")
    generator = torch.Generator().manual_seed(0)
    done: dict[str, list[str]] = {}
    rows = list(samples(split, limit))
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        done.setdefault("196, all", []).extend(answer(model, processor, part))
        features, attention = look(model, processor, part)
        scores = {"[CLS] row": attention}
        scores |= {f"random, seed {s}": torch.rand(attention.shape, generator=generator) for s in range(seeds)}
        for budget in BUDGETS:
            for name, score in scores.items():
                keep = score.topk(budget, dim=1).indices.sort(1).values
                answers = answer_pruned(model, processor, features, keep, [row["question"] for row in part])
                done.setdefault(f"{budget}, {name}", []).extend(answers)
    return {name: shares(rows, answers) for name, answers in done.items()}


def main() -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(MODEL_DIR))
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=2100, help="samples, of seven types in turn")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of the random ranking")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    accuracies = measure(args.model, args.split, args.limit, args.seeds)
    base = majority(args.split, args.limit)
    accuracies["none, commonest answer"] = base | {"macro": sum(base.values()) / len(base)}
    say(table(accuracies))


if __name__ == "__main__":
    main()
