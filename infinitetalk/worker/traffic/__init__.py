"""Requests to addresses that a job names: checked, with limits, and repeated after transient errors."""
