"""Configuration: run-level keys, binding of components, and messages about mistakes."""
