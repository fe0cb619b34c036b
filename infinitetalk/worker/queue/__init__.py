"""The worker's side of Runpod's queue: jobs taken, run, stopped and answered."""
