"""One thin script per step of the line."""
