"""Faults put into vLLM or the plugin on purpose, so that a test can show that it would notice them."""


def apply(names: str) -> None:
    """Applies faults by name, separated by commas."""
    for name in filter(None, names.split(",")):
        CONTROLS[name]()


def plain_hash() -> None:
    """The caches' keys of an image leave out everything but its pixels: no kwargs of the request, no settings."""
    from vllm.multimodal.processing.inputs import ProcessorInputs

    true = ProcessorInputs.get_mm_hashes

    def get_mm_hashes(self, model_id, *args, **kwargs):
        kept, self.hf_processor_mm_kwargs = self.hf_processor_mm_kwargs, {}
        try:
            return true(self, "model", *args, **kwargs)
        finally:
            self.hf_processor_mm_kwargs = kept

    ProcessorInputs.get_mm_hashes = get_mm_hashes


def no_all_reduce() -> None:
    """Each tensor-parallel rank chooses by the scores of its own heads."""
    from vtc.vllm import pruned_model

    pruned_model.mean_over_ranks = lambda local: local


CONTROLS = {"plain_hash": plain_hash, "no_all_reduce": no_all_reduce}
