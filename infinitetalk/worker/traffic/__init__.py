"""Requests to addresses that a job names: checked, bounded, repeated where that helps."""
