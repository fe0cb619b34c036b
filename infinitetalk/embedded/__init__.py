"""The models that come with the package: the tiny talker, and a model of random weights."""
