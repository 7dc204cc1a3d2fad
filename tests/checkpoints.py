"""Small checkpoints of the Llama family with random weights, saved by transformers itself."""

import json
from pathlib import Path
from typing import Any

import torch

from tests.tiny import TEXT

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 64,
}


def write_tokenizer(directory: Path, tokens: int = 300) -> Path:
    """A byte-level BPE tokenizer without mask or padding token, trained on the text of the tests."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=tokens, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    library.train([str(TEXT)], trainer)
    directory.mkdir(parents=True, exist_ok=True)
    library.save(str(directory / "tokenizer.json"))
    return directory / "tokenizer.json"


def save_checkpoint(
    directory: Path,
    kind: str = "LlamaForCausalLM",
    *,
    dtype: torch.dtype = torch.float32,
    shard: str = "5GB",
    **config: Any,
) -> Any:
    """Save a model with its tokenizer, and give the model: norms that do something, weights that aren't tiny."""
    import transformers

    path = write_tokenizer(directory)
    tokens = len(json.loads(path.read_text())["model"]["vocab"])
    model_class = getattr(transformers, kind)
    settings = {
        **SIZES,
        "vocab_size": tokens,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
        **config,
    }
    torch.manual_seed(5)
    model = model_class(model_class.config_class(**settings, attn_implementation="sdpa")).to(dtype).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.uniform_(parameter, 0.5, 1.5) if "norm" in name else torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(directory, max_shard_size=shard)
    return model
