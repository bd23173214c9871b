"""Do with a video what people ask for, a module a command: analyze, ask, ingest, and playback for chat."""
