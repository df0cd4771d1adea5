"""Tasks of `run.py`, one verb each."""
