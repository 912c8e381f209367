"""How many images the scheduler lets through the encoder in one step: as many as without pruning.

vLLM gives the encoder a budget of tokens for each step, and an image costs what it gives to the prompt. Pruned images
are cheaper, so at a quarter of the tokens a step would encode four times as many before any of their requests writes a
token, and the profiling run would set aside memory for all of them. (With 8 requests at once the first token then came
after 1.44 times as long as unpruned, with this budget after 0.55; requests per second are the same.) vLLM has no
setting for it, so it is lowered in proportion where vLLM computes it, for the models of vtc only.
"""

import functools


class Most(int):
    """The most tokens that an image gives to a prompt; an int, as vLLM expects. unpruned: what it would give without
    pruning."""

    def __new__(cls, kept: int, unpruned: int):
        limit = super().__new__(cls, kept)
        limit.unpruned = unpruned
        return limit

    def of(self, budget: int) -> int:
        """A budget of unpruned tokens as one of kept tokens, with room for one image."""
        return max(int(self), -(-budget * self // self.unpruned))


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
