"""The Runpod worker: all code that uses the queue, the stores or the JSON of the interface."""
