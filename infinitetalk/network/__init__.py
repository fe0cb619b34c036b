"""The network that predicts the velocity: its modules, and the protocols that sampling and the network meet at."""
