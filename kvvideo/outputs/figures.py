"""Numbers as reports print them. A number and its unit stay on one line."""

_GAP = "\N{NO-BREAK SPACE}"


def count(number: float) -> str:
    """Return a number with its thousands parted: ``12,345``."""
    return f"{number:,.0f}"


def counted(number: int, name: str) -> str:
    """Return how many there are of what ``name`` is one of: ``1 answer``, ``2 answers``."""
    return f"{number} {name}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """Return a share of 1 in percent: ``75 %``, ``0.23 %``."""
    return f"{share * 100:.{0 if share >= 0.1 or not share else 2 if share < 0.01 else 1}f}{_GAP}%"


def size(number: float) -> str:
    """Return bytes with a unit: ``12.3 MB``, ``200 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.95:
            return f"{number:.1f}".removesuffix(".0") + _GAP + unit
        number /= 1000
    return f"{number:,.1f}{_GAP}TB"


def short(seconds: float) -> str:
    """Return a duration with its units: ``0.8 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f}{_GAP}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{_GAP}min {rest}{_GAP}s"
    return f"{minutes // 60:,}{_GAP}h {minutes % 60}{_GAP}min"
