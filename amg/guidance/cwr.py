"""Repeated words of the prompt ("CWR", Somepalli et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence

from amg.guidance.base import Guidance
from amg.guidance.draws import words_of


class CaptionWordRepetition(Guidance):
    """Inserts random words of the original prompt, each at a random place between words.

    Args:
        repeats: how many; DCR's command line 4, its function 2, Wen et al. 1.
    """

    needs_prompts = needs_text_encoder = True

    def __init__(self, repeats: int = 4):
        if repeats < 0:
            raise ValueError(f"guidance.repeats must be >= 0, got {repeats}")
        self.repeats = repeats

    def prompts(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        return [self._repeat(prompt, words_of("cwr", seed)) for prompt, seed in zip(prompts, seeds, strict=True)]

    def _repeat(self, prompt: str, rng) -> str:
        words = prompt.split(" ")
        original = tuple(words)
        for _ in range(self.repeats):
            words.insert(rng.randint(0, len(words)), rng.choice(original))
        return " ".join(words)
