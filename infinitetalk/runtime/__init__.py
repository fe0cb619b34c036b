"""Networks at run time: which ones are wanted and in which form, those there are, what devices report."""
