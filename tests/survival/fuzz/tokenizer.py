"""A ``tokenizer.json``."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

from stackwise_core.engine.tokenizer.tokenizer import load_tokenizer
from stackwise_core.errors import UsageError
from tests.survival.fuzz.driver import Target
from tests.survival.fuzz.hostile import json_files
from tests.survival.fuzz.messages import refusing
from tests.survival.fuzz.specimens import put


@cache
def whole_tokenizer() -> Any:
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=100, special_tokens=["[MASK]", "[PAD]"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()[:40]
    )
    library.train_from_iterator(["in the beginning god created the heaven and the earth"], trainer)
    return json.loads(library.to_str())


def check_tokenizer(content: bytes, inside: Path) -> bool:
    """Check that it gives ids of its vocabulary with an offset each, or says what is wrong with the file."""
    put(inside / "tokenizer.json", content)
    with refusing(UsageError):
        tokenizer = load_tokenizer(str(inside / "tokenizer.json"), mask_token=None)
        ((ids, offsets),) = tokenizer.encode(["in the beginning é \0"])
        assert len(ids) == len(offsets)
        assert all(0 <= each < tokenizer.vocab_size for each in ids)
        tokenizer.decode(ids)
        return True
    return False


TOKENIZER = Target(
    "tokenizer.json",
    lambda: json_files(whole_tokenizer()),
    check_tokenizer,
    share=0.5,
    sound=lambda: json.dumps(whole_tokenizer()).encode(),
)
