"""Addresses that a job names: only spellings that every library reads alike and that are sent unchanged."""

from __future__ import annotations

import re

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

MAX_ADDRESS_CHARACTERS = 8192

_ADDRESS = re.compile(r"(https?://[^/?#]+)(.*)", re.IGNORECASE)
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")


def check_address(address: str) -> str:
    """Checks that an http(s) address means the same to every URL parser and is sent as it is written.

    The case of scheme, host and percent escapes is ignored.

    Raises:
        ValueError: the address is too long, or contains a space, a backslash, a control character, a letter that is not
            ASCII, a user name, or anything else that would be sent in another form.
    """
    if len(address) > MAX_ADDRESS_CHARACTERS:
        raise ValueError(f"must have at most {MAX_ADDRESS_CHARACTERS} characters")
    odd = next((letter for letter in address if letter == "\\" or not "!" <= letter <= "~"), None)
    if odd is not None:
        raise ValueError(
            f"must not hold {odd!a}: percent-encode all but plain ASCII characters, and write a host's name in its "
            "xn-- form"
        )
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ValueError("must be an http or https address with a host")
    place, rest = match.groups()
    if "@" in place:
        raise ValueError("must not hold a user name or password: presign the address instead")
    try:
        sent = parse_url(address).url
    except LocationParseError:
        sent = None
    if sent != place.lower() + _ESCAPE.sub(lambda escape: escape[0].upper(), rest):
        raise ValueError(
            'must be written as it is sent: percent-encode characters such as "[" and "|", leave "." and ".." out of '
            "the path, and write the port as a plain number"
        )
    return address
