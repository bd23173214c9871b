"""Texts of strangers made fit to be shown: nothing in them drives a terminal, hides, or turns what is around it."""

import re

_BREAK = re.compile("\r\n|[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]")
# Control characters, what reorders text beyond itself, halves of characters, and what is no character. Joiners and
# marks of direction stay: words of many languages need them.
_UNSAFE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr((plane << 16) + 0xFFFE) + chr((plane << 16) + 0xFFFF) for plane in range(17))
    + "]"
)


def text(value: str) -> str:
    """Return ``value`` with nothing unsafe in it, its lines parted by newlines."""
    return _UNSAFE.sub("\N{REPLACEMENT CHARACTER}", _BREAK.sub("\n", value).replace("\t", " "))


def line(value: str) -> str:
    """Return ``value`` as one line, without spaces around it or more than one in a row."""
    return " ".join(text(value).split())


def lines(value: str) -> list[str]:
    """Return the lines of ``value``, without empty ones at the beginning and the end."""
    return [part.rstrip() for part in text(value).strip().split("\n")] if value.strip() else []
