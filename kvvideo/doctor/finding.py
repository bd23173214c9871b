"""The result of a check."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "broken"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: name of the thing.
        status: ``ok``; ``warning`` if something will not work that may not be needed; ``broken`` if nothing will.
        says: what was found.
        mend: what to do about it; None if there is nothing to do.
    """

    check: str
    status: Status
    says: str
    mend: str | None = None


def ok(check: str, says: str) -> Finding:
    """Return that it is as it should be."""
    return Finding(check, "ok", says)


def warning(check: str, says: str, mend: str) -> Finding:
    """Return that some things will not work, or not well."""
    return Finding(check, "warning", says, mend)


def broken(check: str, says: str, mend: str) -> Finding:
    """Return that nothing will work before this is mended."""
    return Finding(check, "broken", says, mend)
