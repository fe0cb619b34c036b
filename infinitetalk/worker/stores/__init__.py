"""Stores for results, previews and the state of unfinished jobs, one file for each kind of store."""
