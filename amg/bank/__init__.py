"""The training set made searchable."""

from amg.bank.bank import TrainingBank

__all__ = ["TrainingBank"]
