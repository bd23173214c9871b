"""Ask the engine of a server that ``notice`` found, for ``kvvideo ask``."""

import http.client
import json
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from kvvideo.errors import ConfigError, EngineError, KvvideoError, OutOfMemoryError, VideoError
from kvvideo.runs.agenda import Question
from kvvideo.serve.notice import Notice

ASK, STOP = "/kvvideo/ask", "/kvvideo/stop"
"""Paths of what only holders of a notice's token may do."""

_CONNECT_SECONDS, _STOP_SECONDS = 2.0, 2.0
_ERRORS = {kind.exit_code: kind for kind in (ConfigError, VideoError, OutOfMemoryError, EngineError)}


class Unreachable(Exception):
    """The server is gone, or does not answer as one of ours does."""


@dataclass(frozen=True)
class Client:
    """A person's questions to one server.

    Attributes:
        notice: of the server.
        memory: name of the memory that is asked.
        number: tells these questions from others.
    """

    notice: Notice
    memory: str
    number: str

    def records(self, questions: Sequence[Question], max_answer_tokens: int) -> Iterator[dict[str, Any]]:
        """Ask; yield the records that ``runs.ask.answering`` would.

        Raises:
            KvvideoError: what went wrong there.
            Unreachable: if the server cannot be asked, or is gone before the last record.
        """
        body = {
            "memory": self.memory,
            "id": self.number,
            "questions": [[question.text, question.at] for question in questions],
            "max_answer_tokens": max_answer_tokens,
        }
        with closing(self._connection(_CONNECT_SECONDS)) as connection:
            try:
                connection.connect()
                connection.sock.settimeout(None)  # until it is our turn, and answered
                lines = self._post(connection, ASK, body)
                for line in lines:
                    record: dict[str, Any] = json.loads(line)
                    if record["type"] == "error":
                        raise _ERRORS.get(record["exit_code"], KvvideoError)(record["message"])
                    yield record
                    if record["type"] == "done" and record["error"] is None:
                        return
            except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
                raise Unreachable(str(error) or type(error).__name__) from error
        raise Unreachable("it ended meanwhile")

    def stop(self) -> None:
        """Have no more of the questions asked; the last record comes then."""
        with suppress(OSError, http.client.HTTPException), closing(self._connection(_STOP_SECONDS)) as connection:
            self._post(connection, STOP, {"id": self.number})

    def _connection(self, seconds: float) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urlsplit(self.notice.url).netloc, timeout=seconds)

    def _post(self, connection: http.client.HTTPConnection, path: str, body: object) -> http.client.HTTPResponse:
        head = {"Content-Type": "application/json", "Authorization": f"Bearer {self.notice.token}"}
        connection.request("POST", path, json.dumps(body), head)
        answer = connection.getresponse()
        if answer.status not in (200, 400):
            raise OSError(f"HTTP {answer.status}")
        return answer
