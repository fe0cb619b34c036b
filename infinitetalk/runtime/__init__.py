"""Networks at run time: the choice of networks and their form, the loaded networks, GPU memory, and device errors."""
