"""Networks in memory: which ones are wanted, in which form, and those that are there."""
