"""Random tokens in the prompt ("RT", Somepalli et al., 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amg.guidance.base import Guidance
from amg.guidance.draws import words_of

TOKENS = 49400
"""How many of CLIP's tokens the authors draw from; the rest are special."""


class RandomTokens(Guidance):
    """Inserts random tokens of the text encoder's vocabulary, each at a random place between words.

    Args:
        tokens: how many; DCR's command line 4, its function 2, Wen et al. 1.
        tokenizer: a tokenizer, or a folder or hub name of one; the model's own where None.
        model: a model with a tokenizer, where `tokenizer` is None.
    """

    needs_prompts = needs_text_encoder = True

    def __init__(self, tokens: int = 4, tokenizer: str | Any | None = None, model: Any = None):
        if tokens < 0:
            raise ValueError(f"guidance.tokens must be >= 0, got {tokens}")
        if tokenizer is None and not hasattr(model, "tokenizer"):
            raise ValueError("guidance.tokenizer: give one, or a model that has one")
        self.tokens = tokens
        self.tokenizer = model.tokenizer if tokenizer is None else tokenizer

    def prompts(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        return [self._insert(prompt, words_of("rt", seed)) for prompt, seed in zip(prompts, seeds, strict=True)]

    def _insert(self, prompt: str, rng) -> str:
        tokenizer = self._load()
        special = set(tokenizer.all_special_ids)
        ids = [i for i in range(min(TOKENS, len(tokenizer))) if i not in special]
        words = prompt.split(" ")
        for _ in range(self.tokens):
            words.insert(rng.randint(0, len(words)), tokenizer.decode([rng.choice(ids)]).strip())
        return " ".join(words)

    def _load(self) -> Any:
        if isinstance(self.tokenizer, str):
            from transformers import CLIPTokenizer

            try:
                self.tokenizer = CLIPTokenizer.from_pretrained(self.tokenizer)
            except (OSError, ValueError):
                raise FileNotFoundError(
                    f"guidance.tokenizer: no CLIP tokenizer at {self.tokenizer!r}: give the model's tokenizer folder"
                ) from None
        return self.tokenizer
