"""device.sh's results become one record and one page, whatever of them is there."""

import subprocess
from pathlib import Path

from tests.benchmarks.device import PAGE, gathered, page

SCRIPT = Path(__file__).with_name("device.sh")
SUITE = """<testsuites><testsuite>
<testcase classname="tests.a" name="test_good"/>
<testcase classname="tests.a" name="test_bad"><failure message="assert 1 == 2
more"/></testcase>
<testcase classname="tests.a" name="test_broken"><error message="no fixture"/></testcase>
<testcase classname="tests.a" name="test_left_out"><skipped message="slow"/></testcase>
</testsuite></testsuites>"""


def test_without_results_the_page_says_so(tmp_path):
    """The page of the documentation is that, or has the results of a device."""
    text = page(gathered(tmp_path, "cpu"))
    assert "**Not measured yet.**" in text
    written = PAGE.read_text()
    assert written == text or "## Phases of a run" in written


def test_parts_tests_and_examples_are_told(tmp_path):
    """With what failed or ran out of time."""
    (tmp_path / "parts.tsv").write_text("engine-mid\t124\t120\nsuite\t1\t90\n")
    (tmp_path / "examples.tsv").write_text("smallest\t0\t3.5\nclm\t4\t1.0\n")
    (tmp_path / "suite.xml").write_text(SUITE)
    found = gathered(tmp_path, "cpu")
    assert found["suite"]["bad"] == [
        {"test": "tests.a::test_bad", "message": "assert 1 == 2 more"},
        {"test": "tests.a::test_broken", "message": "no fixture"},
    ]
    text = page(found)
    assert "| engine-mid | out of time | 120 |\n| suite | **failed** (1) | 90 |" in text
    assert "1 passed, 1 failed, 1 errors, 1 skipped" in text
    assert "**Not these**: clm." in text


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path):
    """The script empties only a folder that it has made."""
    (tmp_path / "kept.json").write_text("{}")
    done = subprocess.run([SCRIPT, "--device", "cpu", "--out", tmp_path], capture_output=True, text=True)
    assert (done.returncode, [each.name for each in tmp_path.iterdir()]) == (2, ["kept.json"])
    assert "isn't empty" in done.stderr
