"""Answer a job file: several videos at once through one engine, every answer on the disk as soon as it is given."""

import tempfile
from pathlib import Path

from kvvideo import CacheConfig, EngineConfig
from kvvideo.batch.jobs import read_jobs
from kvvideo.batch.results import Results
from kvvideo.batch.run import Batch, Local
from kvvideo.batch.tasks import Defaults, tasks_of

JOBS = Path(__file__).parents[1] / "samples" / "jobs.jsonl"

engine = EngineConfig(model="tiny", cache=CacheConfig(max_tokens=1024), sessions=3)
defaults = Defaults(engine, {"min_pixels": 4 * 28 * 28, "max_pixels": 16 * 28 * 28})
tasks = tasks_of(read_jobs(JOBS)[:2], defaults)
with tempfile.TemporaryDirectory() as folder, Results(Path(folder)) as results:
    batch = Batch(tasks, results, defaults)
    batch.run(Local(engine, [engine.cache]), batch.pending())
    for record in results.answered.values():
        print(f"{record['id']}: {record['question']} {record['answer']}")
    summary = batch.summary("complete")
    print(f"{summary['right']} of {summary['scored']} right")
