"""Checks of outputs: sound pages, records as the schema says, subtitles that FFmpeg reads."""

import json
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import av
from jsonschema import Draft202012Validator

from kvvideo.outputs.page import POLICY
from tests.helpers import ROOT

VOID = {"meta", "img", "wbr", "input"}


ALLOWED = {
    "lang",
    "charset",
    "http-equiv",
    "content",
    "name",
    "class",
    "id",
    "href",
    "src",
    "alt",
    "style",
    "dir",
    "role",
    "aria-label",
    "aria-labelledby",
    "aria-hidden",
    "tabindex",
    "x",
    "x1",
    "x2",
    "y1",
    "y2",
    "cx",
    "cy",
    "r",
    "d",
    "width",
    "height",
    "opacity",
    "viewbox",
    "preserveaspectratio",
    "controls",
    "preload",
    "type",
    "checked",
}


class Parsed(HTMLParser):
    """A page, each tag of which must be closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append((tag, dict(attrs).get("class") or ""))
            self.texts.append((self._open[-1][1] or tag, ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in [name for name, _ in self._open]
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            name = self._open[-1][1] or self._open[-1][0]
            last = max((i for i, (known, _) in enumerate(self.texts) if known == name))
            self.texts[last] = (name, self.texts[last][1] + data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data!r}")

    def all(self, name: str) -> list[str]:
        """Return the texts of all elements of a class, or of a tag without one."""
        return [text for known, text in self.texts if known == name]


def check_page(text: str, video: str = "") -> Parsed:
    """Check that a page is well-formed and needs nothing from elsewhere, but for a ``video``; return it parsed."""
    page = Parsed(text)
    known = {
        "video",
        "script",
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "main",
        "footer",
        "section",
        "article",
        "figure",
    }
    known |= {"figcaption", "h1", "h2", "h3", "p", "a", "b", "span", "div", "dl", "dt", "dd", "ul", "li", "img", "wbr"}
    known |= {
        "svg",
        "rect",
        "circle",
        "line",
        "path",
        "ol",
        "details",
        "summary",
        "fieldset",
        "legend",
        "label",
        "input",
    }
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len({*ids})
    for tag, attributes in page.tags:
        assert tag in known
        assert not any(name.startswith("on") for name in attributes)
        assert {*attributes} <= ALLOWED
        if attributes.get("class") == "seek":
            assert re.fullmatch(re.escape(video) + r"#t=[\d.]+(,[\d.]+)?", attributes["href"] or "")
        elif "href" in attributes:
            assert (attributes["href"] or "")[0] == "#"
            assert (attributes["href"] or "")[1:] in ids
        if tag in ("video", "script"):
            assert video
            assert attributes.get("src") == (video if tag == "video" else None)
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
        if tag == "img":
            assert re.fullmatch(r"data:image/jpeg;base64,[A-Za-z0-9+/]*=*", attributes["src"] or "")
            assert attributes["alt"]
        if tag == "svg":
            assert "aria-hidden" in attributes or (attributes["role"] == "img" and attributes["aria-label"])
    (sheet,) = page.all("style")
    assert not re.search(r"url\(|@import|expression|\\", sheet)
    assert not any("url" in (attributes.get("style") or "") for _, attributes in page.tags)
    policies = [
        a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert POLICY == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    if video:
        (script,) = page.all("script")
        digest = b64encode(sha256(script.encode()).digest()).decode()
        assert policies == [f"{POLICY}; media-src 'self' file: http: https:; script-src 'sha256-{digest}'"]
    else:
        assert policies == [POLICY]
    return page


def demuxed(path: Path) -> tuple[str, list[tuple[int, int]]]:
    """Return FFmpeg's name of the only stream's codec, and the times of its packets, in milliseconds."""
    with av.open(str(path)) as container:
        (stream,) = container.streams.subtitles
        packets = [p for p in container.demux(stream) if p.size]
        times = [
            (round(float(p.pts * p.time_base) * 1000), round(float(p.duration * p.time_base) * 1000)) for p in packets
        ]
        return stream.codec_context.codec.canonical_name, times


def validator(name: str) -> Draft202012Validator:
    schema = json.loads((ROOT / "kvvideo" / "outputs" / "schema" / f"{name}.schema.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


RECORD, JOB = validator("record"), validator("job")
