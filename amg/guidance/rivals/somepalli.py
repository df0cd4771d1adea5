"""Random changes of the prompt or its embedding (Somepalli et al., 2023): RNA, RT, CWR and GNI."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from amg.guidance.base import Guidance
from amg.guidance.streams import noise_of, words_of
from amg.models.base import Condition
from amg.step import Start

TOKENS = 49400
"""Number of CLIP's tokens from which the authors sample; the rest are special."""


class _Insertion(Guidance):
    """Inserts random words into the prompt, each at a random place between words.

    Args:
        method: name of the generator that the words are drawn from, apart from those of other methods.
        argument, count: the name and value of the number of words.
    """

    needs_prompts = needs_text_encoder = True

    def __init__(self, method: str, argument: str, count: int):
        if count < 0:
            raise ValueError(f"guidance.{argument} must be >= 0, got {count}")
        self.method, self.count = method, count

    def prompts(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        return [self._insert(prompt, words_of(self.method, seed)) for prompt, seed in zip(prompts, seeds, strict=True)]

    def _insert(self, prompt: str, rng: random.Random) -> str:
        words = prompt.split(" ")
        choose = self._source(tuple(words))
        for _ in range(self.count):
            words.insert(rng.randint(0, len(words)), choose(rng))
        return " ".join(words)

    def _source(self, words: tuple[str, ...]) -> Callable[[random.Random], str]:
        """Draws one word to insert into a prompt of these words."""
        raise NotImplementedError


class RandomNumbers(_Insertion):
    """Inserts random numbers 0 … 99,999, each at a random place between words.

    Args:
        numbers: how many; DCR's command line 4, its function 2, Wen et al. 1.
    """

    def __init__(self, numbers: int = 4):
        super().__init__("rna", "numbers", numbers)

    def _source(self, words: tuple[str, ...]) -> Callable[[random.Random], str]:
        return lambda rng: str(rng.randrange(10**5))


class RandomTokens(_Insertion):
    """Inserts random tokens of the text encoder's vocabulary, each at a random place between words.

    Args:
        tokens: how many; DCR's command line 4, its function 2, Wen et al. 1.
        tokenizer: a tokenizer, or a folder or hub name of one; the model's own where None.
        model: a model with a tokenizer, where `tokenizer` is None.
    """

    def __init__(self, tokens: int = 4, tokenizer: str | Any | None = None, model: Any = None):
        super().__init__("rt", "tokens", tokens)
        if tokenizer is None and getattr(model, "tokenizer", None) is None:
            raise ValueError("guidance.tokenizer: give one, or a model that has one")
        self.tokenizer = model.tokenizer if tokenizer is None else tokenizer

    def _source(self, words: tuple[str, ...]) -> Callable[[random.Random], str]:
        tokenizer = self._load()
        special = set(tokenizer.all_special_ids)
        ids = [i for i in range(min(TOKENS, len(tokenizer))) if i not in special]
        return lambda rng: tokenizer.decode([rng.choice(ids)]).strip()

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


class CaptionWordRepetition(_Insertion):
    """Inserts random words of the original prompt, each at a random place between words.

    Args:
        repeats: how many; DCR's command line 4, its function 2, Wen et al. 1.
    """

    def __init__(self, repeats: int = 4):
        super().__init__("cwr", "repeats", repeats)

    def _source(self, words: tuple[str, ...]) -> Callable[[random.Random], str]:
        return lambda rng: rng.choice(words)


class GaussianNoiseInput(Guidance):
    """e ← e + scale · N(0, I), on the embeddings of the prompt and of the null condition alike.

    Args:
        scale: λ; the authors' 0.1.

    Of a condition with several parts the sequence of token embeddings alone is noised.
    """

    needs_prompts = needs_text_encoder = True

    def __init__(self, scale: float = 0.1):
        if not scale >= 0:
            raise ValueError(f"guidance.scale must be >= 0, got {scale}")
        self.scale = scale

    def prepare_null(self, model: Any, null: Condition, seeds: Sequence[int]) -> Condition:
        return self._noised(null, "gni null", seeds)

    def prepare(self, model: Any, prompts, condition: Condition, x_T: Tensor, seeds: Sequence[int], start: Start):
        return self._noised(condition, "gni prompt", seeds), x_T

    def _noised(self, condition: Condition | None, stream: str, seeds: Sequence[int]) -> Condition | None:
        if isinstance(condition, dict):
            name = "encoder_hidden_states"
            return {**condition, name: self._noised(condition[name], stream, seeds)}
        if condition is None:
            return None
        shape = condition.shape[1:]
        noise = torch.stack([torch.randn(shape, generator=noise_of(stream, seed)) for seed in seeds])
        return condition + self.scale * noise.to(condition)
