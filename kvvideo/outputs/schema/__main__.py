"""Write the JSON Schemas of jobs and records beside this file."""

import json
from pathlib import Path

from kvvideo.outputs.schema import Schema, document, find
from kvvideo.outputs.schema.jobs import Job
from kvvideo.outputs.schema.records import Record

FOLDER = Path(__file__).parent


def documents() -> dict[str, Schema]:
    """Return the schemas by their file names."""
    return {
        "job.schema.json": document(
            Job, True, **{"$id": "urn:kvvideo:job:1"}, title="A job of kvvideo: one line of a job file"
        ),
        "find.schema.json": document(
            find.Record,
            False,
            **{"$id": "urn:kvvideo:find:1"},
            title="A record of kvvideo find, version 1",
            description="docs/records.md says what the fields mean. Later versions of kvvideo may add fields.",
            type="object",
            required=["type"],
        ),
        "record.schema.json": document(
            Record,
            False,
            **{"$id": "urn:kvvideo:record:1"},
            title="A record of kvvideo, version 1",
            description="docs/records.md says what the fields mean. Later versions of kvvideo may add fields.",
            type="object",
            required=["type"],
        ),
    }


def text(schema: Schema) -> str:
    """Return the text of a schema's file."""
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    for name, schema in documents().items():
        (FOLDER / name).write_text(text(schema), encoding="utf-8")
