"""A run's tokenizer as the files that transformers loads: the same ids for the same text."""

from typing import Any

from stackwise_core.config.tokenizer_json import MASK, PAD
from stackwise_core.interfaces.checkpoint_format import ExportedTokenizer
from stackwise_huggingface.checkpoint import TOKENIZER
from stackwise_huggingface.special_ids import TOKENIZER_CONFIG


def tokenizer_files(tokenizer: ExportedTokenizer, seq_len: int) -> dict[str, Any]:
    """Return the content of each file by its name."""
    ids = tokenizer.special_ids.items()
    tokens = {name: tokenizer.tokens[id_] for name, id_ in ids if id_ in tokenizer.tokens}
    mask, pad = tokens.pop(MASK), tokens.pop(PAD)
    return {
        TOKENIZER: dict(tokenizer.content),
        TOKENIZER_CONFIG: {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "mask_token": mask,
            "pad_token": pad,
            **({"additional_special_tokens": list(tokens.values())} if tokens else {}),
            "model_max_length": seq_len,
            "clean_up_tokenization_spaces": False,
        },
    }
