"""Errors that no single module owns. Their messages are fit for a client: no path of the worker, no traceback."""


class GenerationStopped(Exception):
    """The caller asked to stop."""


class NotFiniteError(ArithmeticError):
    """A network's numbers have become infinite or undefined. The message says which."""


class CheckpointError(RuntimeError):
    """Weights cannot be loaded. The message names the file and, where one is at fault, the tensor."""
