"""The worker's entry point: takes jobs from Runpod's queue, or one job from the command line.

python handler.py --test_input '{"id": "demo", "input": {…}}'    one job, its result on stdout
python handler.py --rp_serve_api                                 the SDK's local API, /run and /status
"""

import multiprocessing
import sys
from contextlib import nullcontext, redirect_stdout

PYTHONS = ((3, 11), (3, 12))
"""Versions of Python that the pinned packages are for."""


def main() -> None:
    """Starts to take jobs at once, while a thread loads the libraries and the model."""
    if sys.version_info[:2] not in PYTHONS:
        sys.exit(
            f"Python 3.11 or 3.12 is needed, and this is {sys.version.split()[0]}: run handler.py with one of them"
        )
    # Imported here, because the SDK's ping process imports this file too and must stay small.
    from infinitetalk.worker.logs import configure_logs
    from infinitetalk.worker.settings import Settings, default_environment

    default_environment()
    settings = Settings()
    # Before the import of anything that writes to the log.
    result_output = sys.stdout
    configure_logs(settings)
    import runpod

    from infinitetalk.worker.machine.fitness import register_checks
    from infinitetalk.worker.queue import delivery, ping, taking
    from infinitetalk.worker.queue.runner import Handler, Runner, printing, with_error_as_text
    from infinitetalk.worker.queue.startup import Startup

    # A forked ping process would inherit locks held by the thread that loads the model.
    multiprocessing.set_start_method("spawn")
    runs_one_job = any(argument.startswith("--test_input") for argument in sys.argv)
    serves_api = "--rp_serve_api" in sys.argv
    has_queue = settings.webhook_get_job is not None and not runs_one_job and not serves_api
    startup = Startup(settings, register_checks(settings) if has_queue else None)
    runner = Runner(settings, startup.resources)
    taking.install(runner.drain, runner.is_unfit, settings.shutdown_grace_s)
    ping.install(runner.end)
    delivery.install(settings.delivery_timeout_s, runner.after_delivery)
    startup.start()
    handler: Handler = runner
    if runs_one_job:
        handler = printing(handler, result_output)
    if serves_api:
        handler = with_error_as_text(handler)
    # The SDK prints its own lines to stdout, which must hold only the result.
    with redirect_stdout(sys.stderr) if runs_one_job else nullcontext():
        try:
            runpod.serverless.start({"handler": handler})
        finally:
            startup.finish()


if __name__ == "__main__":
    main()
