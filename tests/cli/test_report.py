"""The options of a report, through the command line."""

from pathlib import Path

import pytest

from kvvideo.cli.options import Output
from kvvideo.errors import ConfigError
from tests.helpers import SAMPLES, commands
from tests.helpers.outputs import Parsed, check_page

ANALYZE = ("analyze", "letters-1m.mp4", "-m", "tiny", "--max-tokens", "512", "--to", "12", "-q", "@0:06 What?")


@pytest.mark.usefixtures("one_engine")
def test_a_run_and_what_was_kept_of_it_are_shown_beside_the_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "letters-1m.mp4").symlink_to(SAMPLES / "letters-1m.mp4")
    monkeypatch.chdir(tmp_path)
    done = commands.run(capfd, *ANALYZE, "-o", "out/{stem}.html", "--video-link", "--pictures", "none")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out" / "letters-1m.html").read_text()
    (video,) = {a.get("src") for tag, a in check_page_of(text).tags if tag == "video"}
    assert video is not None
    assert (tmp_path / "out" / video).resolve() == (SAMPLES / "letters-1m.mp4").resolve()
    assert not any(tag == "img" for tag, _ in check_page_of(text).tags)
    # What is drawn is what the records say.
    assert 'class="held"' in text


def check_page_of(text: str) -> Parsed:
    return check_page(text, text.partition('preload="metadata" src="')[2].partition('"')[0])


def test_a_player_is_refused_only_where_there_is_a_report() -> None:
    with pytest.raises(ConfigError, match="video-link: 'rtsp://camera' cannot be played beside a report"):
        Output(format=["html"], video_link=True).look("rtsp://camera")
    for output in (Output(format=["srt"], video_link=True), Output(format=["html"])):
        assert output.look("rtsp://camera").video is None
    assert Output(output="a.html", video_link=True).look("a.mp4").video == "a.mp4"
    assert Output(output="a.html", video_link=True).look(None).video is None
