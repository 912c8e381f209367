"""How many images the scheduler lets through the encoder in one step: as many as unpruned.

vLLM gives the encoder a budget of tokens for each step, and an image costs what it gives to the prompt. Pruned images
are cheaper, so at a quarter of the tokens a step would encode four times as many before any of their requests writes a
token, and the profiling run would set aside memory for all of them. (With 8 requests at once the first token then came
at 1.44 of unpruned's time, with this budget at 0.55; requests per second are the same.) vLLM has no setting for it, so
it is lowered in proportion where vLLM works it out, for our models only.
"""

import functools


class Most(int):
    """The most tokens that an image gives to a prompt; an int, as vLLM wants it. whole: what it would give unpruned."""

    def __new__(cls, kept: int, whole: int):
        made = super().__new__(cls, kept)
        made.whole = whole
        return made

    def of(self, budget: int) -> int:
        """A budget of unpruned tokens as one of kept tokens, with room for one image."""
        return max(int(self), -(-budget * self // self.whole))


def lower_encoder_budget() -> None:
    """Has vLLM's budget for the encoder follow `Most`, in this process. May be called again."""
    from vllm.multimodal import encoder_budget

    original = encoder_budget.compute_mm_encoder_budget
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def lowered(scheduler_config, most_per_item):
        """(budget of a step, size of the cache)"""
        step, cache = original(scheduler_config, most_per_item)
        shares = [most.of(step) for most in most_per_item.values() if isinstance(most, Most)]
        return min([step, *shares]), cache

    encoder_budget.compute_mm_encoder_budget = lowered
