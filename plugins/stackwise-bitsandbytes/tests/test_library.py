"""bitsandbytes is imported when a stack is quantised, not before, and says nothing then."""

import os
import subprocess
import sys

import pytest

from stackwise_core.testing.fresh import heavy_imports

QUANTISE = """
import torch
from stackwise_bitsandbytes.four_bit import Nf4
from stackwise_bitsandbytes.options import FourBitOptions
Nf4(FourBitOptions()).quantised(torch.nn.Linear(64, 64, bias=False))
"""


def test_listing_and_checking_leave_it():
    """Neither hooks nor options import it."""
    code = "import stackwise_bitsandbytes.hooks, stackwise_bitsandbytes.options"
    assert heavy_imports(code, ("numpy", "torch", "bitsandbytes")) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["four_bit:Nf4:FourBitOptions", "eight_bit:Int8:EightBitOptions"])
def test_planning_leaves_it(name):
    """A precision is built and asked for its bytes and its device without it."""
    module, factory, options = name.split(":")
    code = f"""
import torch
from stackwise_bitsandbytes.{module} import {factory}
from stackwise_bitsandbytes.options import {options}
precision = {factory}({options}())
precision.bytes_per_weight, precision.check(torch.device("cpu"))
"""
    assert heavy_imports(code, ("bitsandbytes",)) == []


@pytest.mark.slow
def test_quantising_imports_it_in_silence(tmp_path):
    """Nothing is printed, and the package ``kernels``, which would download, isn't asked for anything."""
    (tmp_path / "kernels.py").write_text("print('kernels was imported')\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    code = (
        f"{QUANTISE}\nimport sys; assert 'bitsandbytes' in sys.modules and 'kernels' not in sys.modules\nimport kernels"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "kernels was imported\n", "once, by the last line above"
