"""The time left follows the prediction where nothing is measured, and the attempt where much is."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.job import Job, StepProgress
from service.domain.placement import Placement
from service.domain.prediction import Prediction, prediction_of
from service.domain.states import JobState, Step
from service.domain.time_left import NOT_PREDICTED, OTHER_VERSION, TimeLeft, time_left

BEGAN = datetime(2026, 11, 21, 12, tzinfo=UTC)
SECONDS: dict[Step, float | None] = {**dict.fromkeys(Step, 10.0), Step.CALIBRATE: 100.0}
PREDICTION = Prediction(Placement(2, 1, 0), "1", dict.fromkeys(Step, 10.0), SECONDS)


def job(*steps: StepProgress, at: float = 0, **changes: Any) -> Job:
    """A running job as it was read so many seconds after it began."""
    base = Job(
        id="job-1",
        name=None,
        state=JobState.RUNNING,
        stored_spec="{}",
        attempt=1,
        created_at=BEGAN,
        started_at=BEGAN,
        finished_at=None,
        failure=None,
        steps=steps,
        prediction=PREDICTION,
        read_at=BEGAN + timedelta(seconds=at),
    )
    return replace(base, **changes)


def running(step: Step, done: int, total: int, began: float = 0) -> StepProgress:
    return StepProgress(step, done, total, "units", BEGAN + timedelta(seconds=began), None)


def ended(step: Step, seconds: float, began: float = 0) -> StepProgress:
    start = BEGAN + timedelta(seconds=began)
    return StepProgress(step, 1, 1, "units", start, start + timedelta(seconds=seconds))


def left(*steps: StepProgress, at: float = 0, **changes: Any) -> TimeLeft:
    found = time_left(job(*steps, at=at, **changes))
    assert found is not None
    return found


def known(*steps: StepProgress, at: float = 0, **changes: Any) -> float:
    seconds = left(*steps, at=at, **changes).seconds
    assert seconds is not None
    return seconds


RESOLVED = ended(Step.RESOLVE, 50)


def test_before_anything_is_measured_it_is_what_was_predicted() -> None:
    found = left(RESOLVED, running(Step.CALIBRATE, 0, 1000, began=50), at=50)
    assert found.steps == {step: SECONDS[step] for step in Step if step is not Step.RESOLVE}
    assert found.seconds == 170
    assert found.reason is None


@pytest.mark.parametrize("pace", [0.5, 1.0, 3.0])
def test_an_attempt_at_another_pace_corrects_itself_and_the_steps_to_come(pace: float) -> None:
    """Half of the calibration is measured: nearly the same is thought of all that is left."""
    found = left(RESOLVED, running(Step.CALIBRATE, 500, 1000, began=50), at=50 + 50 * pace)
    calibrate, publish = found.steps[Step.CALIBRATE], found.steps[Step.PUBLISH]
    assert calibrate is not None
    assert publish is not None
    assert calibrate == pytest.approx(50 * pace, rel=0.2)
    assert publish == pytest.approx(10 * pace, rel=0.3)


def test_a_pace_as_predicted_leaves_what_was_predicted() -> None:
    found = left(RESOLVED, running(Step.CALIBRATE, 250, 1000, began=50), at=75)
    assert found.steps[Step.CALIBRATE] == pytest.approx(75)
    assert found.steps[Step.PUBLISH] == pytest.approx(10)


def test_within_a_unit_time_is_what_says_how_far_a_step_has_come() -> None:
    """Two artifacts, each by a worker: none is done until both nearly are."""
    for at in (0.0, 5.0, 9.0):
        found = left(RESOLVED, running(Step.ASSEMBLE, 0, 2, began=50), at=50 + at)
        assert found.steps[Step.ASSEMBLE] == pytest.approx(10 - at)


def test_a_step_that_is_overdue_is_never_said_to_have_ended() -> None:
    found = [
        left(RESOLVED, running(Step.ASSEMBLE, 0, 2, began=50), at=50 + at).steps[Step.ASSEMBLE]
        for at in (10, 30, 300)
    ]
    assert 0 < (found[0] or 0) < (found[1] or 0) < (found[2] or 0)


def test_downloads_say_nothing_of_the_pace() -> None:
    slow, fast = (left(ended(Step.RESOLVE, seconds), at=seconds) for seconds in (1, 1000))
    assert slow.seconds == fast.seconds == 170


@pytest.mark.parametrize("pace", [1.0, 2.0])
def test_what_was_resumed_is_done_and_was_not_taken(pace: float) -> None:
    """An attempt that goes on at half of the calibration, and has made a half of the rest."""
    resumed = replace(PREDICTION, resumed={Step.CALIBRATE: 0.5, Step.PUBLISH: 1.0})
    at_once = left(
        RESOLVED, running(Step.CALIBRATE, 500, 1000, 50), at=50, prediction=resumed
    ).steps
    assert at_once[Step.CALIBRATE] == pytest.approx(50)
    assert at_once[Step.PUBLISH] == 0
    later = left(
        RESOLVED,
        running(Step.CALIBRATE, 750, 1000, 50),
        at=50 + 25 * pace,
        prediction=resumed,
    ).steps
    assert later[Step.CALIBRATE] == pytest.approx(25 * pace, rel=0.3)
    done = [RESOLVED, ended(Step.CALIBRATE, 50 * pace, began=50)]
    after = left(*done, at=50 + 50 * pace, prediction=resumed).steps
    assert after[Step.SOLVE] == pytest.approx(10 * pace, rel=0.2)


def test_passes_there_take_less_than_half_of_the_time() -> None:
    curved = replace(PREDICTION, curves={Step.CALIBRATE: ((0.5, 0.2),)})
    halfway = left(RESOLVED, running(Step.CALIBRATE, 500, 1000, 50), at=70, prediction=curved)
    assert halfway.steps[Step.CALIBRATE] == pytest.approx(80)
    assert halfway.steps[Step.PUBLISH] == pytest.approx(10)


def test_a_step_that_is_not_predicted_leaves_the_job_without_a_time() -> None:
    prediction = replace(PREDICTION, seconds=SECONDS | {Step.EVALUATE: None}, unknown="Tasks.")
    found = left(RESOLVED, running(Step.CALIBRATE, 0, 9, 50), at=50, prediction=prediction)
    assert (found.seconds, found.reason) == (None, "Tasks.")
    assert found.steps[Step.EVALUATE] is None
    assert found.steps[Step.PUBLISH] == 10
    steps = [ended(step, SECONDS[step] or 0) for step in Step if step is not Step.PUBLISH]
    at_the_end = left(*steps, prediction=prediction)
    assert at_the_end.seconds == pytest.approx(10)
    assert at_the_end.reason is None


@pytest.mark.parametrize(
    ("changes", "steps", "reason"),
    [
        ({"state": JobState.QUEUED}, (), "The job waits."),
        ({"state": JobState.CANCELLING}, (), "The job is being cancelled."),
        ({"prediction": None}, (running(Step.RESOLVE, 0, 1),), NOT_PREDICTED),
        ({"prediction": None}, (RESOLVED,), OTHER_VERSION),
    ],
)
def test_what_is_not_known_has_a_reason(
    changes: dict[str, Any], steps: tuple[StepProgress, ...], reason: str
) -> None:
    found = left(*steps, **changes)
    assert (found.seconds, found.reason, found.steps) == (None, reason, {})


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED])
def test_nothing_is_left_of_a_job_that_has_ended(state: JobState) -> None:
    assert time_left(job(RESOLVED, state=state)) is None


@given(
    pace=st.floats(0.2, 5),
    units=st.integers(1, 2000),
    share=st.floats(0, 1),
    resumed=st.floats(0, 1),
)
def test_whatever_was_measured_the_time_left_is_a_number_within_reason(
    pace: float, units: int, share: float, resumed: float
) -> None:
    prediction = replace(PREDICTION, resumed={Step.CALIBRATE: resumed})
    done = min(units - 1, int(units * max(share, resumed)))
    step = running(Step.CALIBRATE, done, units, began=50)
    at = 50 + 100 * pace * max(0.0, share - resumed)
    found = known(RESOLVED, step, at=at, prediction=prediction)
    assert 0 <= found <= 8 * 160


@given(share=st.floats(0.05, 0.95), pace=st.floats(0.3, 3))
def test_the_more_is_measured_the_less_the_time_left_is_off(share: float, pace: float) -> None:
    """The truth lies between what was predicted and what is thought at the end."""
    step = running(Step.CALIBRATE, int(1000 * share), 1000, began=50)
    found = left(RESOLVED, step, at=50 + 100 * pace * share).steps[Step.CALIBRATE]
    assert found is not None
    truth = 100 * (1 - share) * pace
    predicted = 100 * (1 - share)
    assert abs(found - truth) <= abs(predicted - truth) + 1


def test_an_event_holds_all_of_a_prediction() -> None:
    full = replace(
        PREDICTION,
        seconds=SECONDS | {Step.EVALUATE: None},
        resumed={Step.SOLVE: 0.5},
        curves={Step.CALIBRATE: ((0.5, 0.2),)},
        unknown="Tasks.",
    )
    assert prediction_of(full.as_data()) == full


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"placement": None},
        PREDICTION.as_data() | {"seconds": {"other": 1}},
        PREDICTION.as_data() | {"curves": {"solve": [1]}},
        PREDICTION.as_data() | {"placement": {"workers": 1}},
        PREDICTION.as_data() | {"modelled": [1]},
    ],
)
def test_a_prediction_of_another_form_is_none(data: dict[str, Any]) -> None:
    assert prediction_of(data) is None
