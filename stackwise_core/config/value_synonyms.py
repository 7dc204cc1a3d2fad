"""Words of other trainers and libraries for values of Stackwise."""

from collections.abc import Collection

_SYNONYMS = {
    "gpu": "cuda",
    "nvidia": "cuda",
    "rocm": "cuda",  # torch calls an AMD device so
    "processor": "cpu",
    "adamw_torch": "adamw",
    "adam8bit": "adamw_8bit",
    "adamw8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_32bit": "paged_adamw",
    "warmup_stable_decay": "wsd",
    "unidirectional": "causal",
    "autoregressive": "causal",
    "diffusion": "mask_diffusion",
    "masked_diffusion": "mask_diffusion",
    "mdlm": "mask_diffusion",
    "bert": "mlm",
    "masked_lm": "mlm",
    "causal_lm": "clm",
    "elbo": "nelbo",
    "float32": "fp32",
    "float16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
    "float8": "fp8",
    "ram": "memory",
}


def same_as(value: str, known: Collection[str]) -> str | None:
    """Return the known value for another library's word, whatever its case; None if there is none."""
    meant = _SYNONYMS.get(value.lower().replace("-", "_").replace(" ", "_"))
    return meant if meant in known else None
