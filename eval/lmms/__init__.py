"""vtc as a model of lmms-eval: `--model vtc`, registered through the entry point group `lmms_eval.models`.

    python -m lmms_eval --model vtc --model_args pretrained=llava-hf/llava-1.5-7b-hf,strategy=hiprune,keep=0.25 \
        --tasks gqa,mmbench_en --batch_size 1 --output_path results/lmms --log_samples

runs the tasks, prompts and metrics of lmms-eval on a model patched by vtc. Needs `pip install "vtc-vlm[lmms]"`;
nothing else of vtc imports lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval). Keys of --model_args:

pretrained: `demo`, a local directory, or a hub id (required).
strategy: a shipped name, a YAML file, or several as A+B. Default `none`: the model is not patched.
keep: fraction of the visual tokens (0.25) or count (64); default: the strategy's own.
dtype, attn_implementation, device_map, revision, trust_remote_code (default False): for from_pretrained.
min_pixels, max_pixels: for processors that have these options.
device: default cuda if available, else cpu; with several processes each uses the GPU of its local rank.
batch_size: prompts per generate() call, padded on the left; default 1. Also lmms-eval's own --batch_size.
max_new_tokens: for tasks that do not set it; default 1024.
Every other key is a knob of the strategy or part of its budget, as in `vtc eval --set`: prune_ratio=0.75, alpha=0.2,
METHOD.KNOB=..., the value read as (safe) YAML.

Of a task's generation_kwargs these are used: max_new_tokens, do_sample, temperature, top_p, top_k, num_beams,
repetition_penalty and until. Sampling needs a temperature above 0 and no `do_sample: false`. An answer ends before the
first of the `until` texts, unless `until` is only a blank line: lmms-eval fills that in for tasks that do not set it,
and its own models ignore it too. Other keys are listed in a warning.
"""


def manifest():
    """The entry point's object: lmms-eval's ModelManifest of the model `vtc`, built without importing torch."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="vtc", chat_class_path="vtc.eval.lmms.bridge.VtcModel")
