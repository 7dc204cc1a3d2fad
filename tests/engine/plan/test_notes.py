"""Notes of a plan about text without scored tokens."""

import json

import pytest

from stackwise_core.engine.phases.setup import set_up
from stackwise_core.engine.plan.notes import of_the_coverage
from stackwise_core.engine.plan.plan import make_plan
from stackwise_core.engine.text.token_stream import Coverage
from tests.tiny import TEXT, tiny_config


@pytest.mark.parametrize(
    ("coverage", "shares"),
    [
        (Coverage(1000, 0, 0), []),
        (Coverage(1000, 123, 0), ["12.3 % of the text is unknown to the tokenizer"]),
        (Coverage(1000, 0, 5), ["0.5 % of the text has no token"]),
        (Coverage(10**9, 1, 10**9 - 1), ["Less than 0.01 % of the text is unknown", "100 % of the text has no token"]),
    ],
)
def test_shares_without_a_token(coverage, shares):
    """A share is said where there is one, and one that there is is never shown as nothing."""
    said = of_the_coverage(coverage)
    assert len(said) == len(shares)
    assert all(line.startswith(share) for line, share in zip(said, shares, strict=True))


def test_a_plan_says_what_the_tokenizer_does_not_know(tmp_path):
    """Words that the tokenizer lacks and the spaces that it drops are shares of the text; dropout is off."""
    text = TEXT.read_text()
    words = sorted(set(text.split()) - {"God"})
    from tokenizers import Tokenizer, models, pre_tokenizers

    library = Tokenizer(models.WordLevel({word: place for place, word in enumerate(["?", *words])}, unk_token="?"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    content = json.loads(library.to_str())
    content["truncation"] = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "t.json").write_text(json.dumps(content))
    notes = make_plan(set_up(*tiny_config(tmp_path, {"data.tokenizer": str(tmp_path / "t.json")}))).notes
    size, unknown = len(text.encode()), 3 * text.split().count("God")
    dropped = size - sum(len(word.encode()) for word in text.split())
    assert f"{100 * unknown / size:.3g} % of the text is unknown" in " ".join(notes)
    assert f"{100 * dropped / size:.3g} % of the text has no token" in " ".join(notes)
    assert any("t.json: switched off" in note and "truncation" in note for note in notes)
    assert not any("the text" in note for note in make_plan(set_up(*tiny_config(tmp_path))).notes)
