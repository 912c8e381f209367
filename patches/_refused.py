"""Well-known models of transformers that vtc cannot prune, each with the reason: what the error and the docs say."""

_OWN_EMBEDDINGS = (
    "its decoder layers take an embedding of their own for each token (per_layer_inputs), or keys and values of "
    "earlier layers, which vtc does not cut"
)
_NO_ENCODER = "patches of pixels are projected straight into the language model: there is no vision encoder to observe"
_THINKER = (
    "the tokens of a clip may alternate with those of its sound (use_audio_in_video), which no layout of vtc describes"
)
_OMNI = f"{_THINKER}, and its talker reads hidden states at every place of the unpruned prompt"
_CROSS_ATTENTION = "the language model reads images by cross attention: its prompt holds no visual tokens"
_QUERIES = "the prompt holds learned queries, each of which reads the whole image: no token belongs to a place in it"
_CODES = "images are codes of a codebook in the vocabulary: there is no projector whose output could be selected"

REFUSED: dict[str, str] = {
    "gemma3n": _OWN_EMBEDDINGS,
    "gemma4": _OWN_EMBEDDINGS,
    "gemma4_unified": _NO_ENCODER,
    "fuyu": _NO_ENCODER,
    "qwen2_5_omni": _OMNI,
    "qwen2_5_omni_thinker": _THINKER,
    "qwen3_omni_moe": _OMNI,
    "qwen3_omni_moe_thinker": _THINKER,
    "mllama": _CROSS_ATTENTION,
    "idefics": _CROSS_ATTENTION,
    "blip-2": _QUERIES,
    "instructblip": _QUERIES,
    "instructblipvideo": _QUERIES,
    "idefics2": _QUERIES,
    "kosmos-2": _QUERIES,
    "chameleon": _CODES,
    "emu3": _CODES,
    "llama4": (
        "its layers scale queries by their number in the cache and attend within chunks of places: both would shift "
        "with every token dropped"
    ),
    "paligemma": "image and question attend to each other both ways, and vtc makes no masks for a prefix that does",
    "phi4_multimodal": "images enter inside the language model, so that there is no boundary at which to cut",
    "florence2": "an encoder reads image and text together, and the decoder reads its output by cross attention",
}  # fmt: skip
"""By `model_type`; asked only where no family, of vtc or another package, has that type."""
