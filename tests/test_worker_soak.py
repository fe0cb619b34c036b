"""Many jobs through one worker: nothing of a job stays behind in the process. `make soak` runs the long form."""

from tests.soak import WEIGHING_HANDLER, soak
from tests.worker_process import running_worker

KINDS = ("picture", "two speakers", "inline")
#: What may be added to what is held: caches of a bounded size fill.
GROWTH = 1.001


def test_a_worker_holds_after_many_jobs_what_it_held_after_a_few(tmp_path):
    with running_worker(tmp_path, WEIGHING_HANDLER) as worker:
        result = soak(worker, num_jobs=10, look_after=[5], kinds=KINDS)
    assert sum(result.outcomes.values()) == 10
    assert result.outcomes["CANCELLED"] == 1
    before, after = result.looks.values()
    assert after["threads"] <= before["threads"]
    assert after["open_files"] <= before["open_files"]
    assert after["temporary_files"] <= before["temporary_files"]
    # Not what is resident: of what is free, malloc keeps now more, now less.
    assert after["held_bytes"] < GROWTH * before["held_bytes"]
    assert after["held_objects"] < GROWTH * before["held_objects"]
