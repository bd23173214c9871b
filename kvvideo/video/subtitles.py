"""Find and read the subtitles of a video: a file that is named, a file beside the video, or a track in it."""

import locale
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from kvvideo.errors import KvvideoError, VideoError, first_line
from kvvideo.video.address import is_live
from kvvideo.video.cues import LIT, Caption, Subtitles
from kvvideo.video.decoder import check_file, reason
from kvvideo.video.process import WorkerProcess

logger = logging.getLogger("kvvideo.video")

AUTO, OFF = "auto", "off"
"""Wishes: what is found, and nothing. Every other wish is the name of a file."""

ENDINGS = (".srt", ".vtt", ".ass", ".ssa")
"""Endings of the files beside a video that are looked at; where nothing else decides, the first first."""

_LARGEST = 16 << 20
"""Bytes of a file at most: a day of speech is one million, and effects of ASS may be ten times the words."""
_STALL_SECONDS = 60.0
"""Seconds for which the process that reads a track may be silent."""
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:[-_][a-z0-9]{2,4})*", re.IGNORECASE)
_MARKS = frozenset({"forced", "sdh", "cc", "hi", "default"})
_TIMED = re.compile(r"\d:\d\d[.,]\d+\s*-->")
_SAME = (
    "bg bul, cs ces cze, da dan, de deu ger, el ell gre, en eng, es spa, et est, eu eus baq, fa fas per, fi fin, "
    "fr fra fre, ga gle, he heb, hi hin, hr hrv, hu hun, hy hye arm, id ind, is isl ice, it ita, ja jpn, ka kat geo, "
    "ko kor, lt lit, lv lav, mk mkd mac, ms msa may, my mya bur, nl nld dut, no nor, pl pol, pt por, ro ron rum, "
    "ru rus, sk slk slo, sl slv, sq sqi alb, sr srp, sv swe, th tha, tr tur, uk ukr, vi vie, zh zho chi"
)
"""Codes of ISO 639 that are the same language: that of two letters, then those of three, which containers use."""
_TWO_LETTERS = {code: codes.split()[0] for codes in _SAME.split(", ") for code in codes.split()}


def find(
    video: str,
    wish: str = AUTO,
    *,
    live: bool = False,
    spared: Collection[Path] = (),
    note: Callable[[str], None] = logger.info,
) -> Subtitles | None:
    """Return the subtitles of ``video``; None without any.

    Args:
        video: a file, or what stands for a live source.
        wish: a file's name; ``off``; or ``auto``: a file beside the video, else a track of text in it. Of several
            the one without a language, then one in the language of the locale, then the first by name.
        live: True if it is read as a live source, for which ``auto`` means ``off``.
        spared: files beside the video that are no subtitles of it, such as those the run will write.
        note: takes a line about what was taken.

    Raises:
        VideoError: if the file that is named is not there, or holds no subtitles.
    """
    if wish == OFF or (wish == AUTO and (live or is_live(video))):
        return None
    found = _found(video, spared, note) if wish == AUTO else read(wish)
    if found is not None and not found.cues:
        logger.warning("the subtitles in %r have no words", found.name)
        return None
    return found


def read(path: str) -> Subtitles:
    """Return the subtitles in the file at ``path``: SubRip, WebVTT, ASS or SSA. A warning says if it is no Unicode.

    Raises:
        VideoError: if it is not there, or is no such file.
    """
    check_file(path)
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise VideoError(f"{path!r} cannot be read: {reason(error)}") from None
    if len(data) > _LARGEST:
        raise VideoError(f"{path!r} is larger than {_LARGEST >> 20} MB, which no subtitles are; name another file")
    text, unsure = _decoded(data)
    if unsure:
        logger.warning("%r is not in Unicode and was read as Latin-1: letters may be wrong; save it as UTF-8", path)
    return Subtitles.of(path, _captions(text, path))


def beside(video: str) -> list[Path]:
    """Return the files beside ``video`` that are subtitles by their names, the one to take first.

    They are called as the video: ``film.srt``, ``film.en.srt``, ``film.pt-BR.sdh.vtt``.
    """
    folder, stem = Path(video).parent, Path(video).stem
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.name.startswith(f"{stem}.") and entry.is_file()]
    except (OSError, ValueError):
        return []
    ranked = []
    for name in names:
        ending = os.path.splitext(name)[1]
        if ending.lower() not in ENDINGS:
            continue
        tags = name[len(stem) : -len(ending)].lower().strip(".").split(".") if len(name) > len(stem + ending) else []
        languages = [tag for tag in tags if tag not in _MARKS]
        if len(languages) <= 1 and all(map(_LANGUAGE.fullmatch, languages)):
            key = ("forced" in tags, _rank(languages[0] if languages else None), ENDINGS.index(ending.lower()), name)
            ranked.append((key, folder / name))
    return [path for _, path in sorted(ranked)]


def _found(video: str, spared: Collection[Path], note: Callable[[str], None]) -> Subtitles | None:
    """Return what ``auto`` takes."""
    if not os.path.isfile(video):
        return None  # whoever reads the pictures will say so
    others = {os.path.realpath(path) for path in spared}
    files = [path for path in beside(video) if os.path.realpath(path) not in others]
    for path in files:
        try:
            found = read(str(path))
        except VideoError as error:
            logger.warning("subtitles are left out: %s", error)
            continue
        more = f", the first of {len(files)} beside it" if len(files) > 1 else ""
        note(f"subtitles of {video!r}: {found.name!r}{more}")
        return found
    track = _track(video)
    if track is not None:
        note(f"subtitles of {video!r}: {track.name!r}")
    return track


def _track(video: str) -> Subtitles | None:
    """Return the text track of ``video`` that ``tracks.read`` chooses; None without one, or if it cannot be read."""
    worker = WorkerProcess(video, 0.0, None, False, 1, ())
    request: dict[str, Any] = {"path": video, "decoder": "pyav", "what": "subtitles", "quiet": True, "live": None}
    with closing(worker):
        try:
            worker.ask({**request, "language": _own_language()})
            found = worker.next(_STALL_SECONDS)
        except KvvideoError as error:
            # Whoever reads the pictures will say so.
            logger.debug("no subtitles are looked for: %s", error)
            return None
    return found if isinstance(found, Subtitles) else None


def _rank(language: str | None) -> int:
    """Return the place of a file or a track in this language, the lowest first."""
    return 0 if language is None else 1 if same_language(language, _own_language()) else 2


def same_language(one: str, other: str) -> bool:
    """Return True if two codes, such as ``en``, ``eng`` and ``en-GB``, stand for one language."""
    first, second = (re.split("[-_]", code.lower())[0] for code in (one, other))
    return bool(first) and _TWO_LETTERS.get(first, first) == _TWO_LETTERS.get(second, second)


def _own_language() -> str:
    """Return the code of the language that the person reads; empty if nobody says."""
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if value := os.environ.get(name):
            return (locale.normalize(value).partition(".")[0].partition("_")[0]).lower() if value != "C" else ""
    return ""


def _decoded(data: bytes) -> tuple[str, bool]:
    """Return the text of a file, and True if its encoding was guessed."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace"), False
    # Without a mark: every other byte of Latin letters is zero.
    if data[1:200:2].count(0) > len(data[1:200:2]) // 2:
        return data.decode("utf-16-le", "replace"), False
    if data[:200:2].count(0) > len(data[:200:2]) // 2:
        return data.decode("utf-16-be", "replace"), False
    try:
        return data.decode("utf-8-sig"), False
    except UnicodeDecodeError:
        pass
    try:
        # What is called Latin-1 has the quotes of Windows.
        return data.decode("cp1252"), True
    except UnicodeDecodeError:
        return data.decode("latin-1"), True


def _captions(text: str, name: str) -> Iterator[Caption]:
    """Yield the captions of a file."""
    import pysubs2

    text = text.replace("\r\n", "\n").replace("\r", "\n")
    # The library takes long for long runs of blanks, and a line of words with two times in it for the time of a cue.
    text = LIT.sub("", re.sub("[ \t]+", " ", re.sub("\n{3,}", "\n\n", text)))
    kind = _kind(text, name)
    try:
        # Tags are taken out with those of other formats.
        events = pysubs2.SSAFile.from_string(text, format_=kind, keep_html_tags=True).events
    except Exception as error:  # the library says nothing of what its readers raise
        raise VideoError(f"{name!r} is damaged ({first_line(error)}); save it as SubRip (.srt)") from None
    for event in events:
        if not event.is_comment:
            # In WebVTT what follows a blank line is a note, or the name of the next cue.
            text = event.text.partition(r"\N\N")[0] if kind == "vtt" else event.text
            yield Caption(event.start / 1000, event.end / 1000, text)


def _kind(text: str, name: str) -> str:
    """Return what the library calls the format of a file.

    Raises:
        VideoError: if it is none of ours.
    """
    if text.lstrip("\ufeff \n").startswith("WEBVTT"):
        return "vtt"
    if "[Events]" in text:
        return "ass" if "[V4+ Styles]" in text or "ScriptType: v4.00+" in text else "ssa"
    if _TIMED.search(text):
        return "srt"
    raise VideoError(f"{name!r} holds no subtitles in SubRip, WebVTT or ASS; name a file that does")
