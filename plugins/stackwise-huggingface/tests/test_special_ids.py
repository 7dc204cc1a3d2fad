import json

import pytest

from stackwise_core.config.tokenizer_json import Vocabulary
from stackwise_huggingface.special_ids import read_special_ids

VOCABULARY = Vocabulary({"a": 0, "b": 1, "</s>": 2, "<m>": 3, "<p>": 4, "<unk>": 5}, {2: "</s>", 3: "<m>", 4: "<p>"})
ROWS = 10


def read(directory, config=None, defaults=None, **files):
    """What is found, and what is wrong, of a directory with these files; ``generation_config=...`` is one."""
    for name, content in files.items():
        (directory / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return read_special_ids(directory, config or {}, VOCABULARY, ROWS, defaults or {})


FOUND = {
    "nothing is said": ({}, {}),
    "config.json": ({"config": {"mask_token_id": 7, "pad_token_id": 2}}, {"mask": 7, "pad": 2}),
    "generation_config.json": ({"generation_config": {"mask_token_id": 7, "pad_token_id": 4}}, {"mask": 7, "pad": 4}),
    "names in tokenizer_config.json": (
        {"tokenizer_config": {"mask_token": "<m>", "pad_token": {"content": "<p>", "special": True}}},
        {"mask": 3, "pad": 4},
    ),
    "names in special_tokens_map.json": ({"special_tokens_map": {"mask_token": {"content": "<m>"}}}, {"mask": 3}),
    "all of them agree": (
        {
            "config": {"mask_token_id": 3, "pad_token_id": 4},
            "tokenizer_config": {"mask_token": "<m>", "pad_token": "<p>"},
            "special_tokens_map": {"mask_token": "<m>", "pad_token": "<p>"},
            "generation_config": {"pad_token_id": 4},
        },
        {"mask": 3, "pad": 4},
    ),
    "others that tokenizer.json doesn't call special": (
        {
            "tokenizer_config": {"unk_token": "<unk>", "eos_token": "</s>", "add_bos_token": True, "bos_token": None},
            "special_tokens_map": {"additional_special_tokens": ["a", {"content": "</s>"}, "<none>"]},
        },
        {"unk": 5, "token a": 0},
    ),
    "where generation begins and ends is text": (
        {"config": {"bos_token_id": 0, "eos_token_id": [0, 1]}, "generation_config": {"eos_token_id": 1}},
        {},
    ),
    "ids that mean none": ({"config": {"mask_token_id": None, "pad_token_id": -1}}, {}),
    "padding with a token of ordinary text": ({"config": {"pad_token_id": 0}}, {}),
    "padding with the mask": ({"config": {"mask_token_id": 3, "pad_token_id": 3}}, {"mask": 3}),
    "a name whose id config.json has": (
        {"config": {"mask_token_id": 8}, "tokenizer_config": {"mask_token": "<mask>"}},
        {"mask": 8},
    ),
    "a name whose id added_tokens_decoder has": (
        {"tokenizer_config": {"mask_token": "<mask>", "added_tokens_decoder": {"8": {"content": "<mask>"}}}},
        {"mask": 8},
    ),
    "a name whose id added_tokens.json has": (
        {"special_tokens_map": {"mask_token": "<mask>"}, "added_tokens": {"<mask>": 8, "</s>": 2}},
        {"mask": 8},
    ),
    "a default beyond all rows": ({"config": {"mask_token_id": 99, "pad_token_id": 98}}, {}),
    "a default that the tokenizer contradicts": (
        {"config": {"mask_token_id": 99}, "tokenizer_config": {"mask_token": "<m>"}},
        {"mask": 3},
    ),
}


@pytest.mark.parametrize(("files", "expected"), FOUND.values(), ids=FOUND)
def test_ids_wherever_they_are_said(tmp_path, files, expected):
    """Names by their ids; nothing that a text may have is special because of where generation ends."""
    assert read(tmp_path, defaults={"mask": 99, "pad": 98}, **files) == (expected, [])


REFUSED = {
    "config.json and tokenizer_config.json": (
        {"config": {"mask_token_id": 7}, "tokenizer_config": {"mask_token": "<m>"}},
        "{0}: mask has two ids: {0}/tokenizer_config.json: mask_token is \"<m>\", which is 3 and {0}/config.json: "
        "mask_token_id is 7. Correct one of the two",
    ),
    "tokenizer_config.json and special_tokens_map.json": (
        {"tokenizer_config": {"pad_token": "<p>"}, "special_tokens_map": {"pad_token": "</s>"}},
        "{0}: pad has two ids: {0}/tokenizer_config.json: pad_token is \"<p>\", which is 4 and "
        "{0}/special_tokens_map.json: pad_token is \"</s>\", which is 2. Correct one of the two",
    ),
    "config.json and generation_config.json": (
        {"config": {"pad_token_id": 2}, "generation_config": {"pad_token_id": 4}},
        "{0}: pad has two ids: {0}/config.json: pad_token_id is 2 and {0}/generation_config.json: pad_token_id is 4. "
        "Correct one of the two",
    ),
    "added_tokens.json and tokenizer.json": (
        {"added_tokens": {"<m>": 8}},
        '{0}/added_tokens.json: gives "<m>" the id 8, and {0}/tokenizer.json 3',
    ),
    "added_tokens.json and added_tokens_decoder": (
        {"tokenizer_config": {"added_tokens_decoder": {"8": {"content": "<x>"}}}, "added_tokens": {"<x>": 9}},
        '{0}/added_tokens.json: gives "<x>" the id 9, and {0}/tokenizer_config.json 8',
    ),
    "another token than the one that is named": (
        {"config": {"mask_token_id": 3}, "tokenizer_config": {"mask_token": "<mask>"}},
        '{0}: mask is two tokens: {0}/tokenizer_config.json: mask_token is "<mask>", which tokenizer.json hasn\'t, and '
        "{0}/config.json: mask_token_id is 3. Correct one of the two",
    ),
    "a name without an id": (
        {"tokenizer_config": {"mask_token": "<mask>"}},
        '{0}/tokenizer_config.json: mask_token is "<mask>", and no file gives that token an id; set mask_token_id in '
        "config.json",
    ),
    "a row that isn't there": (
        {"config": {"mask_token_id": 10}},
        "{0}/config.json: mask_token_id is 10, and the embedding has 10 rows",
    ),
    "no id": (
        {"config": {"mask_token_id": "7"}},
        '{0}/config.json: expected mask_token_id to be an integer, found the string "7"',
    ),
    "no JSON": ({"tokenizer_config": "{"}, "{0}/tokenizer_config.json can't be read: "),
    "no object": ({"special_tokens_map": "[]"}, "{0}/special_tokens_map.json: expected a JSON object, found an array"),
    "an id of thousands of digits": (
        {"tokenizer_config": {"added_tokens_decoder": {"9" * 5000: {"content": "<x>"}}}},
        "{0}/tokenizer_config.json: expected ids and tokens in added_tokens_decoder, found ",
    ),
    "no id of an added token": (
        {"added_tokens": {"<x>": "y"}},
        '{0}/added_tokens.json: expected ids and tokens, found "y"',
    ),
}  # fmt: skip


def test_a_token_that_is_called_mask_is_not_the_mask(tmp_path):
    """Nor one whose role is no name."""
    vocabulary = Vocabulary({"mask": 0, "pad": 1, "b": 2}, {})
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"extra_special_tokens": ["mask", "pad"], "\ud800_token": "b"})
    )
    assert read_special_ids(tmp_path, {}, vocabulary, ROWS, {}) == ({"token mask": 0, "token pad": 1, "token b": 2}, [])


@pytest.mark.parametrize(("files", "message"), REFUSED.values(), ids=REFUSED)
def test_what_contradicts_itself_is_refused(tmp_path, files, message):
    """With both places and what each says; once."""
    _, problems = read(tmp_path, **files)
    assert len(problems) == 1
    assert problems[0].startswith(message.replace("{0}", str(tmp_path)))
