"""One run: a configuration, a folder, samples, records and their measurement."""
