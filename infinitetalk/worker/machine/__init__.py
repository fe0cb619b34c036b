"""Checks of the machine that the worker runs on."""
