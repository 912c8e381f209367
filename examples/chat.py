"""A conversation of three turns with two pictures on one cache: each picture is read and pruned once, when it comes.

python examples/chat.py                                          (two scenes of the bundled model's)
python examples/chat.py --strategy hiprune+fastv --keep 0.25
"""

import argparse

import torch
from transformers import DynamicCache

import vtc
from vtc.demo.benchmark import sample
from vtc.eval import models


class Chat:
    """A conversation with a patched model. Each turn is given as text and pictures of its own; ids and the cache hold
    what came before. A template that begins every text with a system prompt would repeat it: cut it off there."""

    def __init__(self, model, processor):
        self.model, self.processor = model, processor
        self.cache, self.ids = DynamicCache(config=model.config.get_text_config()), None

    def ask(self, question: str, picture=None) -> str:
        """The answer to a question, about a new picture or those that were shown before."""
        content = [{"type": "image"}] if picture is not None else []
        turn = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
        text = self.processor.apply_chat_template(turn, add_generation_prompt=True)
        inputs = self.processor(text=text, images=picture, return_tensors="pt", add_special_tokens=False)
        ids = inputs.pop("input_ids")
        self.ids = ids if self.ids is None else torch.cat([self.ids, ids], 1)
        inputs["attention_mask"] = torch.ones_like(self.ids)
        before = self.ids.shape[1]
        self.ids = self.model.generate(input_ids=self.ids, **inputs, past_key_values=self.cache)
        return self.processor.decode(self.ids[0, before:], skip_special_tokens=True).strip()


def main() -> None:
    """Asks about one picture, about another, and about the first again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategy", default="hiprune")
    parser.add_argument("--keep", type=float, default=0.25)
    given = parser.parse_args()
    demo = models.load("demo", {}, "cpu")
    vtc.patch(demo.model, given.strategy, keep=given.keep)
    chat, rows = Chat(demo.model, demo.processor), [sample("test", i) for i in (0, 7)]
    for question, picture in [(row["question"], row["image"]) for row in rows] + [(rows[1]["question"], None)]:
        print(f"{'with a picture' if picture else 'text alone':<16}{question:<48}{chat.ask(question, picture)}")
        print(f"{'':<16}the cache holds {chat.cache.get_seq_length()} of {chat.ids.shape[1]} tokens")
    print(vtc.report(demo.model))


if __name__ == "__main__":
    main()
