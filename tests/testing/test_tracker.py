"""Each check of TrackerContract refuses a tracker that is wrong in just that."""

import pytest

from stackwise_core.interfaces.tracker import Tracker
from stackwise_core.testing.tracker import TrackerContract


class Told(Tracker):
    """Keeps what it is told of."""

    def begin(self, run):
        self.run, self.told, self.done = run, [], None

    def begin_phase(self, phase, done, first):
        self.done = done

    def record(self, measurement):
        self.told.append(measurement)

    def close(self):
        self.run = None


class TestRight(TrackerContract):
    @pytest.fixture
    def tracker(self):
        return Told(None)


class NoLikelihoods(Told):
    def record(self, measurement):
        self.told.append(measurement.phase + 1)


class OnlyFromTheStart(Told):
    def begin_phase(self, phase, done, first):
        assert done == 0


class NeedsAPhase(Told):
    def close(self):
        self.done.bit_length()


class Tidying(Told):
    def record(self, measurement):
        measurement.values.pop("loss", None)


class Overwriting(Told):
    def close(self):
        (self.run.directory / "metrics.jsonl").write_text("mine")


WRONG = {
    "no likelihoods": ("test_it_takes_a_whole_run", NoLikelihoods),
    "only from the start": ("test_it_resumes_where_a_process_ended", OnlyFromTheStart),
    "needs a phase": ("test_it_can_be_closed_at_once", NeedsAPhase),
    "tidies": ("test_measurements_are_left_alone", Tidying),
    "overwrites": ("test_the_run_s_own_files_are_left_alone", Overwriting),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_trackers_are_refused(what, refuses, tmp_path):
    """Each wrong tracker fails the check that is about it."""
    check, tracker = WRONG[what]
    run = TrackerContract.run.__wrapped__(TrackerContract(), tmp_path)
    refuses(TrackerContract(), check, TypeError, AttributeError, tracker=tracker(None), run=run)


def test_no_check_is_idle(every_check):
    """Every check of the contract refuses something above."""
    every_check(TrackerContract, {check for check, _ in WRONG.values()})
