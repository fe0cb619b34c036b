"""Progress: in order, not faster than its interval, nothing after the end."""

import asyncio
import itertools
import threading
import time

from infinitetalk.worker.progress import CLOSE_TIMEOUT_S, STAGE_PERCENTAGES, ProgressEvent, ProgressReporter
from schemas import Progress, Stage


class Recorder:
    """Takes messages as a queue would, as slowly as told."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.messages: list[Progress] = []
        self.begun: list[float] = []
        self.in_flight = 0
        self.most_in_flight = 0

    async def __call__(self, message: dict) -> None:
        self.begun.append(time.monotonic())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.seconds)
            self.messages.append(Progress.model_validate(message, strict=False))
        finally:
            self.in_flight -= 1


def report_from_a_thread(recorder: Recorder, interval_s: float, work, flush: bool = True) -> None:
    """Runs `work(report)` in a thread, as a job does."""

    async def run() -> None:
        reporter = ProgressReporter("job-1", recorder, interval_s)
        async with reporter:
            await asyncio.to_thread(work, reporter.report)
            if not flush:
                await reporter.close(flush=False)

    asyncio.run(run())


def test_messages_keep_their_order_and_never_go_back():
    recorder = Recorder()

    def work(report):
        for stage in Stage:
            report(ProgressEvent(stage, 0.5))
            time.sleep(0.02)
        report(ProgressEvent(Stage.SAMPLING, 0.1))

    report_from_a_thread(recorder, 0.0, work)
    percentages = [message.pct for message in recorder.messages]
    assert [message.seq for message in recorder.messages] == list(range(1, len(recorder.messages) + 1))
    assert percentages == sorted(percentages)
    assert percentages[-1] == 100
    assert {message.stage for message in recorder.messages} == set(Stage)


def test_the_latest_message_wins_and_one_request_is_in_flight():
    recorder = Recorder(seconds=0.05)

    def work(report):
        for step in range(1, 101):
            report(ProgressEvent(Stage.SAMPLING, step / 100, details={"step": step}))
            time.sleep(0.002)

    report_from_a_thread(recorder, 0.0, work)
    assert recorder.most_in_flight == 1
    assert len(recorder.messages) < 20
    assert recorder.messages[-1].details == {"step": 100}


def test_messages_keep_the_interval_apart():
    recorder = Recorder()

    def work(report):
        for step in range(50):
            report(ProgressEvent(Stage.SAMPLING, step / 50))
            time.sleep(0.01)

    report_from_a_thread(recorder, 0.1, work)
    pauses = [later - earlier for earlier, later in itertools.pairwise(recorder.begun)]
    # The last one is the flush at the end, which does not wait.
    assert pauses[:-1]
    assert min(pauses[:-1]) >= 0.099


def test_nothing_is_sent_after_the_end_without_a_flush():
    recorder = Recorder(seconds=0.5)

    def work(report):
        report(ProgressEvent(Stage.SAMPLING, 0.5))
        time.sleep(0.1)
        report(ProgressEvent(Stage.SAMPLING, 0.6))

    begin = time.monotonic()
    report_from_a_thread(recorder, 0.0, work, flush=False)
    assert time.monotonic() - begin < 0.4
    assert recorder.messages == []
    assert recorder.in_flight == 0


def test_a_queue_that_hangs_holds_the_result_up_for_a_limited_time():
    recorder = Recorder(seconds=3600)
    begin = time.monotonic()
    report_from_a_thread(recorder, 0.0, lambda report: report(ProgressEvent(Stage.COMPLETED)))
    assert time.monotonic() - begin < CLOSE_TIMEOUT_S + 2
    assert recorder.in_flight == 0


def test_a_message_holds_what_was_true_when_it_was_reported():
    recorder = Recorder(seconds=0.05)
    done = threading.Event()

    def work(report):
        report(ProgressEvent(Stage.SAMPLING, 0.5, eta_s=3.0, details={"step": 1}))
        done.set()

    report_from_a_thread(recorder, 0.0, work)
    assert done.is_set()
    (message,) = recorder.messages
    assert message == Progress(job_id="job-1", seq=1, stage=Stage.SAMPLING, pct=50.0, eta_s=3.0, details={"step": 1})


def test_the_stages_cover_a_job_without_gap_or_overlap():
    spans = [STAGE_PERCENTAGES[stage] for stage in Stage]
    assert (spans[0][0], spans[-1][1]) == (0, 100)
    for (_, end), (begin, _) in itertools.pairwise(spans[:-1]):
        assert begin == end
