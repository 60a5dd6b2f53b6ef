"""Runs on disk: only this room knows file names and the JSON codec; one writer per file."""
