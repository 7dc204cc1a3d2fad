"""Cards that can't be read, and what is said of them."""

import pytest

from stackwise_text.card import read_card


def card(content):
    return f"---\nlicense: mit\n{content}\n---\n# A data set\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("configs:\n- config_name: [", ":5: expected YAML that says which files are which split: "),
        ("configs: all", ": configs: expected a list of tables with config_name and data_files"),
        ("configs:\n- data_files: a", ": configs[0].config_name: expected a name, found None"),
        ("configs:\n- config_name: a\n- config_name: a", ': configs[1].config_name: "a" is there twice'),
        ("configs:\n- config_name: a\n  data_files: 3", ": configs[0].data_files: expected a path, or a list"),
        ("configs:\n- config_name: a\n  data_files:\n  - split: train", "expected a path, or a list of split and path"),
        ("configs:\n- config_name: a\n  data_files: ../x", "expected paths of files in this directory, found '../x'"),
        ("configs:\n- config_name: a\n  data_files: /etc/*", "expected paths of files in this directory"),
        ("configs:\n- config_name: a\n  data_files: hf://x/y", "expected paths of files in this directory"),
        ("configs:\n- config_name: a\n  data_dir: ..", "data_dir: expected a folder of this directory, found '..'"),
        (
            "configs:\n- config_name: a\n  data_files:\n  - {split: t, path: x}\n  - {split: t, path: y}",
            'the split "t" is there twice',
        ),
    ],
)
def test_mistakes(tmp_path, complaint, content, said):
    """What a card says of files is taken as it stands, or refused with the card's name and the place in it."""
    (tmp_path / "README.md").write_text(card(content))
    (tmp_path / "a.txt").write_text("words")
    code, message = complaint(tmp_path)
    assert code == 2
    assert message.startswith(f"{tmp_path}/README.md")
    assert said in message


def test_nothing_is_made_of_yaml_but_values(tmp_path, complaint):
    """Tags that would have other loaders run code are refused."""
    (tmp_path / "README.md").write_text(card("configs: !!python/object/apply:os.system [true]"))
    (tmp_path / "a.txt").write_text("words")
    assert "could not determine a constructor" in complaint(tmp_path)[1]


def test_pages_of_other_kinds(tmp_path):
    """No YAML, YAML of a web page, a rule, and no file are no cards; line ends and a byte order mark don't matter."""
    page = tmp_path / "README.md"
    assert read_card(page) is None
    for text in ("# Title\n", "---\ntitle: x\n---\n", "---\n# Title\n", "---\n- a\n---\n", "----\nlicense: x\n---\n"):
        page.write_text(text)
        assert read_card(page) is None
    page.write_bytes(b"\xef\xbb\xbf---\r\nconfigs:\r\n- config_name: a\r\n---\r\n# Title\r\n")
    (subset,) = read_card(page).subsets
    assert subset.name == "a"


def test_yaml_without_end(tmp_path, complaint):
    """A few lines that stand for billions of values are refused in a line."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for before, name in zip("abcdefghijk", "bcdefghijkl", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    (tmp_path / "README.md").write_text(card("\n".join(lines) + "\nconfigs: [{config_name: x, data_files: *l}]"))
    message = complaint(tmp_path)[1]
    assert "expected a path, or a list of split and path" in message
    assert len(message) < 500
