"""Networks at run time: what holds them, where they lie, and what their devices report."""
