"""Fixtures that several test modules share."""

from tests.s3_server import s3_server, s3_server_process

__all__ = ["s3_server", "s3_server_process"]
