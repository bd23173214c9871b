"""Job files: what is read out of them, and what is said of everything else."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from kvvideo.batch.jobs import SHOWN, Asking, JobsError, is_right, read_jobs
from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError
from kvvideo.outputs import clean
from kvvideo.runs.agenda import Question
from kvvideo.video import Source
from tests.helpers import SAMPLES

SCHEMA = Draft202012Validator(json.loads((resources.files("kvvideo.outputs") / "schema/job.schema.json").read_text()))
GOOD: dict[str, Any] = {"id": "a", "video": "a.mp4", "questions": [{"q": "What?"}]}


def write(path: Path, *lines: object) -> Path:
    """A job file of ``lines``: objects, or text as it is."""
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    return path


def test_a_job_is_read_as_it_says(tmp_path: Path):
    line = {
        "id": "é 1",
        "video": "sub/../x y.mp4",
        "meta": {"any": [1, None]},
        "system": "Be brief.",
        "strategy": "streaming",
        "budget": 4096,
        "max_tokens": 8192,
        "fps": 1,
        "from": "0:10",
        "to": "1:00:00",
        "questions": [
            {"t": "10:30", "q": " What now? ", "answer": "this"},
            {"t": None, "q": "b"},
            {"t": 90.5, "q": "b"},
        ],
    }
    (job,) = read_jobs(write(tmp_path / "jobs.jsonl", "", line, "  "))
    assert (job.id, job.video, job.meta) == ("é 1", f"{tmp_path}/sub/../x y.mp4", {"any": [1, None]})
    assert job.askings == (
        Asking(Question("What now?", 630.0, system="Be brief."), "this"),
        Asking(Question("b", system="Be brief.")),
        Asking(Question("b", 90.5, system="Be brief.")),
    )
    assert job.settings == {
        "strategy": "streaming",
        "budget": 4096,
        "max_tokens": 8192,
        "fps": 1.0,
        "from": 10.0,
        "to": 3600.0,
    }
    assert job.where == f"{tmp_path / 'jobs.jsonl'}:2"
    SCHEMA.validate(line)


def test_a_video_may_be_a_message(tmp_path: Path):
    """Its fields come before the options of the command, which decide what it leaves open."""
    from kvvideo.batch.tasks import Defaults, tasks_of
    from kvvideo.session import EngineConfig

    messages: list[dict[str, Any]] = [
        {"type": "video", "video": "a.mp4"},
        {"video": "file:///videos/b.mp4", "fps": 3, "video_start": 2, "max_pixels": 50176},
        {"video": "c.mp4", "fps": 2.0, "video_end": 9.5, "min_pixels": None},
    ]
    lines = [{**GOOD, "id": str(number), "video": message} for number, message in enumerate(messages)]
    for line in lines:
        SCHEMA.validate(line)
    jobs = read_jobs(write(tmp_path / "jobs.jsonl", *lines))
    assert [job.video for job in jobs] == [f"{tmp_path}/a.mp4", "/videos/b.mp4", f"{tmp_path}/c.mp4"]
    reading = {"fps": 1.0, "chunk_seconds": 8.0, "start": 1.0, "min_pixels": 3136, "max_pixels": 12544}
    sources = [task.source for task in tasks_of(jobs, Defaults(EngineConfig(model="tiny"), reading))]
    assert sources == [
        Source(f"{tmp_path}/a.mp4", **reading),
        Source("/videos/b.mp4", **reading | {"fps": 3.0, "chunk_seconds": 4.0, "start": 2.0, "max_pixels": 50176}),
        Source(f"{tmp_path}/c.mp4", **reading | {"fps": 2.0, "chunk_seconds": 4.0, "end": 9.5}),
    ]


def test_the_bundled_jobs_are_jobs():
    path = SAMPLES / "jobs.jsonl"
    jobs = read_jobs(path)
    assert [job.id for job in jobs] == ["letters-1m", "letters-2m", "letters-4m", "film-2m"]
    assert all(Path(job.video).is_file() for job in jobs)
    assert all(asking.expected for job in jobs for asking in job.askings)


def test_names_of_streams_are_names_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A camera's number and the sign of standard input are files in the folder of the job file."""
    monkeypatch.chdir(tmp_path)
    lines = [{**GOOD, "id": name, "video": name} for name in ("-", "0")]
    write(tmp_path / "jobs.jsonl", *lines)
    assert [job.video for job in read_jobs(Path("jobs.jsonl"))] == ["./-", "0"]


BAD = [
    ('{"id": "a"', "it is not JSON: "),
    ("[" * 100_000, "it is not JSON"),
    ("1" * 10_000, "it is not JSON"),
    ("[]", "the line is [] and must be an object"),
    ("null", "the line is null and must be an object"),
    ('{"id": "a", "id": "b"}', "'id' is there twice"),
    ('{"id": "\udcff"}', "it is not UTF-8"),
    ({**GOOD, "questions": []}, "questions: [] must be a list of questions"),
    ({"id": "a", "video": "x"}, "there is no 'questions'"),
    ({**GOOD, "vidoe": 1}, '"vidoe" is not known; allowed are id, video, questions, strategy, budget'),
    ({**GOOD, "id": " "}, 'id: " " must be a non-empty string'),
    ({**GOOD, "id": 7}, "id: 7 must be a non-empty string"),
    ({**GOOD, "video": "rtsp://camera/1"}, "is an address; a batch reads files"),
    ({**GOOD, "video": "file://elsewhere/a.mp4"}, "is an address; a batch reads files"),
    ({**GOOD, "video": "a\0b"}, "cannot be the name of a file"),
    ({**GOOD, "budget": 0}, "budget: 0 is not a whole number above 0"),
    ({**GOOD, "budget": True}, "budget: true is not a whole number"),
    ({**GOOD, "budget": "4096"}, 'budget: "4096" is not a whole number'),
    ({**GOOD, "fps": -1}, "fps: -1 is not a number above 0"),
    ({**GOOD, "from": "1:00", "to": "0:30"}, "to: 0:30 is not after from, 1:00"),
    ({**GOOD, "meta": 1}, "meta: 1 must be an object"),
    ({**GOOD, "questions": "What?"}, 'questions: "What?" must be a list'),
    ({**GOOD, "questions": [{"t": "1:00"}]}, "questions: in question 1: there is no 'q'"),
    ({**GOOD, "questions": [{"q": "a"}, {"q": ""}]}, 'questions: in question 2: q: "" must be a non-empty string'),
    ({**GOOD, "questions": [{"q": "a", "t": "1:70"}]}, "questions: in question 1: t: '1:70' is not a time"),
    ({**GOOD, "questions": [{"q": "a", "t": -1}]}, "t: -1 is no number of seconds"),
    ({**GOOD, "questions": [{"q": "a", "t": 10**400}]}, "is no number of seconds"),
    ('{"id": "a", "video": "a", "questions": [{"q": "a", "t": NaN}]}', "NaN is no number that JSON has"),
    ('{"id": "a", "video": "a", "questions": [{"q": "a", "t": 1e999}]}', "1e999 is no number that JSON has"),
    ({**GOOD, "questions": [{"q": "a", "when": 1}]}, '"when" is not known; allowed are t, q, answer'),
    ({**GOOD, "questions": [{"q": "a", "t": "1:00"}, {"q": "a ", "t": 60}]}, "question 2 asks the same at 1:00"),
    ({**GOOD, "questions": [{"q": "a"}, {"q": "a"}]}, "question 2 asks the same at the end as question 1"),
    ({**GOOD, "video": {"type": "video"}}, "video: video of a message must be a path"),
    ({**GOOD, "video": {"type": "image", "video": "a.mp4"}}, "video: type of a message must be 'video'"),
    ({**GOOD, "video": {"video": "a.mp4", "nframes": 8}}, "video: nframes of a message cannot be honoured"),
    ({**GOOD, "video": {"video": "a.mp4", "fps": "2"}}, "video: fps of a message must be a number"),
    ({**GOOD, "video": {"video": "rtsp://camera/1"}}, "is an address; a batch reads files"),
    ({**GOOD, "video": {"video": " "}}, 'video: " " must be a non-empty string'),
    ({**GOOD, "video": {"video": ["1.jpg", "2.jpg"]}}, "video: video of a message must be a path"),
    ({**GOOD, "video": {"content": [{"video": "a.mp4"}]}}, "video: content: give the element of the video alone"),
    ({**GOOD, "video": {"video": "a", "fps": 1}, "fps": 2}, "fps: the message under 'video' says that too"),
    ({**GOOD, "video": {"video": "a", "video_end": 9}, "to": "0:08"}, "to: the message under 'video' says that too"),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=range(len(BAD)))
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, line: object, message: str):
    path = write(tmp_path / "jobs.jsonl", {**GOOD, "id": "first"}, line)
    with pytest.raises(JobsError) as caught:
        read_jobs(path)
    (finding,) = caught.value.findings
    assert finding.startswith(f"{path}:2: ")
    assert message in finding
    assert finding.isprintable()
    assert len(finding) < 500


def test_a_file_may_be_named_by_its_url(tmp_path: Path):
    urls = ["file:///videos/a%20b%C3%A9.mp4", "FILE://localhost/videos/100%25.mp4", "file:/a.mp4"]
    path = write(tmp_path / "jobs.jsonl", *({**GOOD, "id": url, "video": url} for url in urls))
    assert [job.video for job in read_jobs(path)] == ["/videos/a bé.mp4", "/videos/100%.mp4", "/a.mp4"]


def test_all_that_is_wrong_is_said(tmp_path: Path):
    path = write(tmp_path / "jobs.jsonl", GOOD, "{", {**GOOD, "video": "b.mp4"}, *[{"x": i} for i in range(40)])
    with pytest.raises(JobsError) as caught:
        read_jobs(path)
    assert len(caught.value.findings) == 42
    lines = str(caught.value).splitlines()
    assert len(lines) == SHOWN + 1
    assert lines[1] == f"{path}:3: id: 'a' was taken by {path}:1; every job needs its own"
    assert lines[-1] == "and 22 more"


@pytest.mark.parametrize(("text", "message"), [(None, "cannot be read"), ("", "has no jobs"), ("\n \n", "has no jobs")])
def test_a_file_without_jobs_is_no_job_file(tmp_path: Path, text: str | None, message: str):
    path = tmp_path / "jobs.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_jobs(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(["id", "video", "questions", "strategy", "budget", "fps", "from", "to", "meta", "x"])
questions = st.lists(
    st.dictionaries(st.sampled_from(["t", "q", "answer", "x"]), json_values | st.sampled_from(["1:30", "90"])),
    max_size=3,
)
lines = st.dictionaries(names, json_values | questions) | json_values


@given(st.lists(lines.map(json.dumps) | st.text(max_size=30), max_size=4))
def test_any_file_gives_jobs_or_says_why_not(tmp_path_factory: pytest.TempPathFactory, lines: list[str]):
    path = tmp_path_factory.mktemp("fuzz") / "jobs.jsonl"
    path.write_bytes("\n".join(lines).encode(errors="surrogatepass"))
    try:
        jobs = read_jobs(path)
    except ConfigError as error:
        said = str(error)
        assert clean.text(said) == said
        return
    for job in jobs:
        assert job.id.strip()
        assert job.askings
        assert isinstance(job.settings.get("budget", 1), int)


BEYOND = (
    "twice",
    "the same at",
    "address",
    "is not after",
    "half a character",
    "number of seconds",
    "no number",
    "name of a file",
)
"""What is refused that no schema can say."""


@given(lines)
def test_what_the_schema_allows_is_read(tmp_path_factory: pytest.TempPathFactory, line: Any):
    """And what is read the schema allows."""
    path = tmp_path_factory.mktemp("fuzz") / "jobs.jsonl"
    path.write_text(json.dumps(line) + "\n")
    try:
        read_jobs(path)
    except ConfigError as error:
        assert not SCHEMA.is_valid(line) or any(words in str(error) for words in BEYOND), error  # noqa: PT017
    else:
        assert SCHEMA.is_valid(line)


@pytest.mark.parametrize(
    ("said", "expected", "right"),
    [
        ("Red.", "red", True),
        ("red", "blue", False),
        ("0:04", "0:04", True),
        ("00:04", "0:04", True),
        ("0:04", "0:08", False),
        ("4", "0:04", False),
        ("a  b", "A b", True),
        ("", "red", False),
        ("1:99", "1:98", False),
    ],
)
def test_answers_are_compared_as_people_would(said: str, expected: str, right: bool):
    assert is_right(said, expected) is right


def test_a_budget_may_be_larger_than_the_commands_bound(tmp_path: Path):
    from kvvideo.batch.tasks import Defaults, tasks_of
    from kvvideo.session import EngineConfig

    lines = [
        {**GOOD, "id": "a", "budget": 4096},
        {**GOOD, "id": "b", "budget": 1000},
        {**GOOD, "id": "c", "strategy": "h2o"},
    ]
    jobs = read_jobs(write(tmp_path / "jobs.jsonl", *lines))
    tasks = tasks_of(jobs, Defaults(EngineConfig(model="tiny", cache=CacheConfig(max_tokens=4096))))
    assert [(t.cache.strategy, t.cache.budget, t.cache.max_tokens) for t in tasks] == [
        ("distinct", 4096, 8192),
        ("distinct", 1000, 4096),
        ("h2o", None, 4096),
    ]


def test_settings_that_are_not_possible_are_said_with_their_place(tmp_path: Path):
    from kvvideo.batch.tasks import Defaults, tasks_of
    from kvvideo.session import EngineConfig

    path = write(
        tmp_path / "jobs.jsonl",
        GOOD,
        {**GOOD, "id": "b", "strategy": "magic"},
        {**GOOD, "id": "c", "budget": 8},
        {**GOOD, "id": "d", "to": "0:10", "questions": [{"q": "a", "t": "0:11"}]},
        {**GOOD, "id": "e", "fps": 0.3},
    )
    with pytest.raises(JobsError) as caught:
        tasks_of(read_jobs(path), Defaults(EngineConfig(model="tiny")))
    starts = [
        f"{path}:{n}: {what}" for n, what in [(2, "strategy: no 'magic'"), (3, "sink: "), (4, "'@0:11 a'"), (5, "")]
    ]
    assert len(caught.value.findings) == len(starts)
    for finding, start in zip(caught.value.findings, starts, strict=True):
        assert finding.startswith(start)


def test_one_ingest_serves_all_questions_of_a_video(tmp_path: Path):
    from kvvideo.batch.tasks import Defaults, tasks_of
    from kvvideo.session import EngineConfig

    (tmp_path / "a.mp4").write_bytes(b"a")
    (tmp_path / "b.mp4").symlink_to("a.mp4")
    asked = [{"q": "What?"}, {"q": "When?", "t": "0:05"}]
    path = write(
        tmp_path / "jobs.jsonl",
        GOOD,
        {"id": "b", "video": "b.mp4", "questions": asked},
        {**GOOD, "id": "c", "fps": 1.0},
    )
    tasks = tasks_of(read_jobs(path), Defaults(EngineConfig(model="tiny")))
    assert [[job.id for job in task.jobs] for task in tasks] == [["a", "b"], ["c"]]
    wants = {question: [(want.job.id, want.index) for want in some] for question, some in tasks[0].wants.items()}
    assert wants == {Question("What?"): [("a", 0), ("b", 0)], Question("When?", 5.0): [("b", 1)]}
