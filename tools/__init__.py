"""What those who release the worker run: not a part of it."""
