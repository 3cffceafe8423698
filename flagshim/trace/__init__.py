"""The trace table: what an engine saw and did, kept in one SQLite file."""
