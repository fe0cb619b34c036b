"""The Runpod worker: all that knows the queue, the stores and the JSON of the interface."""
