"""The models that come with the package: the tiny talker, and a model with random weights."""
