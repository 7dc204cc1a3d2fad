import io

import pytest
from attrs import evolve
from rich.console import Console

from stackwise_core.cli.plan_table import print_plan
from stackwise_core.engine.estimates.host_estimate import HostMemory
from stackwise_core.engine.phases.setup import set_up
from stackwise_core.engine.plan.plan import make_plan
from stackwise_core.options import ByteSize
from stackwise_core.run_files.plan_file import PlanFile
from tests.tiny import tiny_config


@pytest.fixture
def plan(tmp_path):
    return make_plan(set_up(*tiny_config(tmp_path, {"run.device": "cpu"})))


@pytest.fixture
def printed(capsys):
    """The words of the lines that are printed, from the table's headings on."""

    def printed(plan):
        print_plan(Console(file=io.StringIO()), plan)
        return [line.split() for line in capsys.readouterr().out.splitlines()]

    return printed


def test_a_cpu_has_one_column_of_memory(plan, printed):
    """Beside that of the disk, which has the run's own files, too."""
    headings, *rows = printed(plan)
    assert "memory" in headings
    assert not {"device", "host"} & set(headings)
    assert str(ByteSize(plan.phases[0].on_disk)) in " ".join(next(row for row in rows if row[:2] == ["stack", "0"]))


def test_a_device_and_its_host_have_a_column_each(plan, printed):
    """In the table, and in the file."""
    host = HostMemory(process=10**9, offloaded=2 * 10**9, boundaries=0, reading=5 * 10**8)
    both = evolve(plan, phases=tuple(evolve(each, host=host) for each in plan.phases))
    headings, *rows = printed(both)
    assert "memory" not in headings
    place = headings.index("host") - len(headings)
    assert headings[place - 1 : place + 2] == ["device", "host", "disk"]
    assert "3.5 GB" in " ".join(next(row for row in rows if row[:2] == ["stack", "0"]))
    record = PlanFile.from_json(both.to_json(), "plan.json").phases[0].host
    assert (record.offloaded, record.total) == (2 * 10**9, 35 * 10**8)
    assert plan.to_json()["phases"][0]["host"] is None
