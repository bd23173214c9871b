"""Names of output files: ``-o "{stem}.{strategy}.{ext}"``, filled with names that strangers may have chosen."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Formatter

from kvvideo.errors import ConfigError

FIELDS = ("stem", "strategy", "ext")
"""Fields that a template may name in braces."""

LONGEST = 120
"""Bytes of one value in a file's name; most file systems allow 255 for all of it."""

# Separators, what Windows reserves, and what cannot be seen or reorders the text around it.
_FORBIDDEN = re.compile(r'[\\/:*?"<>|]')
_REPLACED = dict.fromkeys(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"), "_") | {"Zs": " "}
_DEVICES = re.compile(r"(?i:con|prn|aux|nul|clock\$|conin\$|conout\$|(?:com|lpt)[0-9¹²³])(?:\..*)?")


@dataclass(frozen=True)
class Names:
    """The fields of one output's name: the video's or job's name, the strategy, and the format's ending."""

    stem: str
    strategy: str
    ext: str


def stem_of(video: str) -> str:
    """Return the stem of outputs about ``video``, a file's name or an address."""
    from urllib.parse import urlsplit

    from kvvideo.video.address import Address

    address = Address.of(video)
    if address.kind == "camera":
        return "camera-" + Path(video).name.removeprefix("video")
    if address.kind == "url":
        parts = urlsplit(video)
        return Path(parts.path).stem or parts.hostname or "stream"
    return "stdin" if video == "-" else Path(video).stem


def safe_name(value: str) -> str:
    """Return ``value`` as a part of a file's name on any system: never empty, a path, an option or a hidden file."""
    name = unicodedata.normalize("NFC", value)
    name = "".join(_REPLACED.get(unicodedata.category(c), c) for c in name)
    name = _FORBIDDEN.sub("_", name).lstrip("-. ").rstrip(". ")
    if not name or _DEVICES.fullmatch(name):
        name = "_" + name
    if len(name.encode()) > LONGEST:
        # What long names begin with they may have in common.
        mark = "~" + hashlib.sha256(value.encode(errors="surrogatepass")).hexdigest()[:8]
        name = name.encode()[: LONGEST - len(mark)].decode(errors="ignore").rstrip(". ") + mark
    return name


def output_path(template: str, *, stem: str, strategy: str, ext: str, directory: Path) -> Path:
    """Return the file that ``template`` names.

    Args:
        template: a path with fields in braces; braces of its own are doubled.
        stem: of the output, see ``Names``; any text.
        strategy: the same.
        ext: the same.
        directory: what a relative path begins in.

    Raises:
        ConfigError: if it is no such template, or if it leads out of the directory that it names.
    """
    parts = _parts(template)
    named, filled = "", ""
    values = {"stem": stem, "strategy": strategy, "ext": ext}
    for literal, field in parts:
        if filled == named:
            named += literal
        filled += literal + (safe_name(values[field]) if field else "")
    home = directory / os.path.dirname(named)
    path = directory / filled
    if os.path.basename(filled) in ("", ".", ".."):
        raise ConfigError(f"output: {template!r} names a directory; write {os.path.join(template, '{stem}.{ext}')!r}")
    real, home_real = (Path(os.path.realpath(p)) for p in (path, home))
    if not real.is_relative_to(home_real):
        raise ConfigError(f"output: {str(path)!r} leads out of {str(home)!r}, the directory that {template!r} names")
    return path


def output_paths(template: str, outputs: Sequence[Names], directory: Path) -> list[Path]:
    """Return the files of all outputs of one run, in order.

    Raises:
        ConfigError: as ``output_path``, and if two of them are the same file.
    """
    fields = {field for _, field in _parts(template) if field}
    taken: dict[str, Names] = {}
    paths = []
    for names in outputs:
        path = output_path(template, **asdict(names), directory=directory)
        other = taken.setdefault(os.path.realpath(path), names)
        if other is not names:
            differ = [field for field in FIELDS if getattr(names, field) != getattr(other, field)]
            missing = [field for field in differ if field not in fields]
            advice = (
                f"add {' or '.join('{' + field + '}' for field in missing)} to {template!r}"
                if missing
                else f"{_shown(other)} and {_shown(names)} differ in nothing that a file's name can have"
            )
            raise ConfigError(f"output: two outputs would be the same file, {str(path)!r}; {advice}")
        paths.append(path)
    return paths


def check(path: Path, *, force: bool, inputs: Sequence[Path] = ()) -> None:
    """Check that ``path`` can be written without losing anything, before there is something to write.

    Args:
        path: the file.
        force: a file that is there may be replaced.
        inputs: files that may not be replaced in any case: what the run reads.

    Raises:
        ConfigError: if it cannot.
    """
    try:
        os.lstat(path)
    except FileNotFoundError:
        above = next(parent for parent in path.absolute().parents if os.path.exists(parent))
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise ConfigError(
                f"{str(path)!r} cannot be written: {str(above)!r} is no directory that can be written to"
            ) from None
        return
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be written: {error.strerror}") from error
    if path.is_dir():
        raise ConfigError(f"{str(path)!r} cannot be written: it is a directory")
    if path.exists() and not path.is_file():
        raise ConfigError(f"{str(path)!r} cannot be written: it is no file; '-' is standard output")
    if any(os.path.exists(other) and os.path.exists(path) and path.samefile(other) for other in inputs):
        raise ConfigError(f"{str(path)!r} cannot be written: the run reads it")
    if not force:
        raise ConfigError(f"{str(path)!r} is there already; choose another name, or replace it with --force")


def _parts(template: str) -> list[tuple[str, str]]:
    """Return the literal texts of a template, each with the field that follows it; empty for none."""
    allowed = ", ".join("{" + field + "}" for field in FIELDS)
    try:
        if b"\0" in os.fsencode(template):
            raise ConfigError(f"output: {template!r} cannot be the name of a file")
    except UnicodeEncodeError as error:
        raise ConfigError(f"output: {template!r} cannot be the name of a file") from error
    try:
        parsed = [*Formatter().parse(template)]
    except ValueError as error:
        raise ConfigError(f"output: {template!r} is no name: {error}; fields are {allowed}") from error
    parts = []
    for literal, field, form, conversion in parsed:
        if field is not None and (field not in FIELDS or form or conversion):
            raise ConfigError(f"output: no {field!r} in {template!r} can be filled in; fields are {allowed}")
        parts.append((literal, field or ""))
    return parts


def _shown(names: Names) -> str:
    return repr(" ".join(dict.fromkeys((names.stem, names.strategy, names.ext))))
