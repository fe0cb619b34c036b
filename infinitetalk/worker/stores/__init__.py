"""Where results, previews and the state of unfinished jobs are kept: one file for each kind of store."""
