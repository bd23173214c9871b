"""What a check says."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "broken"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what it was.
        status: ``ok``; ``warning``: something will not work that may not be needed; ``broken``: nothing will.
        says: what was found.
        mend: what to do about it; None if there is nothing to do.
    """

    check: str
    status: Status
    says: str
    mend: str | None = None


def ok(check: str, says: str) -> Finding:
    """It is as it should be."""
    return Finding(check, "ok", says)


def warning(check: str, says: str, mend: str) -> Finding:
    """Some things will not work, or not well."""
    return Finding(check, "warning", says, mend)


def broken(check: str, says: str, mend: str) -> Finding:
    """Nothing will work before this is mended."""
    return Finding(check, "broken", says, mend)
