"""Command line: words to a checked run, a sweep, and the configuration page."""
