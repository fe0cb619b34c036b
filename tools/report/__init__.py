"""Brings what a first hour on a GPU has measured into the documents: `python -m tools.report merge`."""
