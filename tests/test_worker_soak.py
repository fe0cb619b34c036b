"""Many jobs through one worker: nothing of a job stays behind in the process. `make soak` runs the long form."""

from tests.soak import WEIGHING_HANDLER, check_steady, soak
from tools.worker_process import running_worker

KINDS = ("picture", "two speakers", "inline", "streaming")


def test_a_worker_holds_after_many_jobs_what_it_held_after_a_few(tmp_path):
    with running_worker(tmp_path, WEIGHING_HANDLER) as worker:
        result = soak(worker, num_jobs=20, look_after=[10], kinds=KINDS)
    assert sum(result.outcomes.values()) == 20
    assert result.outcomes["CANCELLED"] == 2
    before, after = result.looks.values()
    check_steady(before, after)
