"""The tokenizer of an export, as transformers loads it."""

import json

from stackwise_core.engine.tokenizer.exported_tokenizer import exported_tokenizer
from stackwise_core.engine.tokenizer.tokenizer import load_tokenizer
from stackwise_huggingface.tokenizer_files import tokenizer_files
from tests.kinds_of_tokenizers import save_kind
from tests.tiny import TEXT


def test_an_exported_tokenizer_gives_the_ids_that_the_rack_was_trained_with(tmp_path):
    """What is switched off for training is off in the export, too: dropout, truncation, padding, special tokens."""
    from transformers import AutoTokenizer

    content = json.loads(save_kind("byte level", tmp_path).read_text())
    content["model"]["dropout"] = 0.5
    content["truncation"] = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    path = tmp_path / "own.json"
    path.write_text(json.dumps(content))
    ours = load_tokenizer(str(path), mask_token=None)
    (tmp_path / "export").mkdir()
    for name, file in tokenizer_files(exported_tokenizer(str(path), ours), 64).items():
        (tmp_path / "export" / name).write_text(json.dumps(file))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "export")
    text = TEXT.read_text()[:300]
    expected = ours.encode([text])[0][0].tolist()
    assert all(theirs(text)["input_ids"] == expected for _ in range(5))
