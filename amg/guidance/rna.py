"""Random numbers in the prompt ("RNA", Somepalli et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence

from amg.guidance.base import Guidance
from amg.guidance.draws import words_of


class RandomNumbers(Guidance):
    """Inserts random numbers 0 … 99,999, each at a random place between words.

    Args:
        numbers: how many; DCR's command line 4, its function 2, Wen et al. 1.
    """

    needs_prompts = needs_text_encoder = True

    def __init__(self, numbers: int = 4):
        if numbers < 0:
            raise ValueError(f"guidance.numbers must be >= 0, got {numbers}")
        self.numbers = numbers

    def prompts(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        return [self._insert(prompt, words_of("rna", seed)) for prompt, seed in zip(prompts, seeds, strict=True)]

    def _insert(self, prompt: str, rng) -> str:
        words = prompt.split(" ")
        for _ in range(self.numbers):
            words.insert(rng.randint(0, len(words)), str(rng.randrange(10**5)))
        return " ".join(words)
