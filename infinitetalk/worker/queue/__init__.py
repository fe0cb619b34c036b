"""The worker's side of Runpod's queue: takes, runs, stops and answers jobs."""
