"""The worker's entry point: takes jobs from Runpod's queue, or one from the command line.

python handler.py --test_input '{"id": "demo", "input": {…}}'    one job, its result on stdout
python handler.py --rp_serve_api                                 the SDK's local API, /run and /status
"""

import multiprocessing
import sys
from contextlib import nullcontext, redirect_stdout


def main() -> None:
    """Loads the model in the background and hands jobs over as they come."""
    # Imported here, since the SDK's ping process imports this file too and must stay small.
    from infinitetalk.worker.logs import configure_logs
    from infinitetalk.worker.settings import Settings, default_environment

    default_environment()
    settings = Settings()
    # Before anything that writes to the log is imported.
    result_output = sys.stdout
    configure_logs(settings)
    import runpod

    from infinitetalk.errors import CheckpointError
    from infinitetalk.worker import delivery, ping, taking
    from infinitetalk.worker.engine import Engine
    from infinitetalk.worker.fitness import fitness_checks
    from infinitetalk.worker.runner import Handler, Runner, printing, with_error_as_text

    # A forked ping process would inherit locks held by the thread that loads the model.
    multiprocessing.set_start_method("spawn")
    try:
        engine = Engine(settings)
    except CheckpointError as error:
        sys.exit(str(error))
    engine.start()
    runner = Runner(settings, engine)
    taking.install(runner.drain, runner.is_unfit, settings.shutdown_grace_s)
    ping.install(runner.end)
    delivery.install(settings.delivery_timeout_s, runner.after_delivery)
    for check in fitness_checks(settings, engine):
        runpod.serverless.register_fitness_check(check)
    handler: Handler = runner
    runs_one_job = any(argument.startswith("--test_input") for argument in sys.argv)
    if runs_one_job:
        handler = printing(handler, result_output)
    if "--rp_serve_api" in sys.argv:
        handler = with_error_as_text(handler)
    # The SDK prints its own lines on stdout, which belongs to the result.
    with redirect_stdout(sys.stderr) if runs_one_job else nullcontext():
        try:
            runpod.serverless.start({"handler": handler})
        finally:
            engine.finish_loading()


if __name__ == "__main__":
    main()
