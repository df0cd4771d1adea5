"""A CLIP tokenizer and a small CLIP text encoder for the lab's captions, in the formats of transformers."""

import json
from typing import Any

from tokenizers import pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTokenizer

LENGTH = 10  # tokens with start and end; the longest caption takes 7
START, END = "<|startoftext|>", "<|endoftext|>"


def tokenizer(captions: list[str]) -> CLIPTokenizer:
    """Learns byte-pair merges from the captions until each of their words is one token.

    As in CLIP's own vocabulary all 256 bytes come first, then the same as ends of words (so that any text can be
    spelled), then the merges in order, then start and end, which also pads.
    """
    learner = CLIPTokenizer().backend_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=30_000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(sorted(captions), trainer)
    merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
    tokens = alphabet + [letter + "</w>" for letter in alphabet]
    # sorted, since merges of equal frequency come in another order in another process, and a resumed training needs
    # the same ids
    tokens += sorted({"".join(merge) for merge in merges} - set(tokens))
    vocabulary = {token: i for i, token in enumerate([*tokens, START, END])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def tokenizer_of(captions: list[str], start: Any) -> tuple[CLIPTokenizer, bool]:
    """Returns the tokenizer of a start (None: there is none) that has the tokens of the captions, else a learned one.

    The text encoders of a start know its ids: the second value tells whether they can be taken.
    """
    learned = tokenizer(captions)
    alike = start is not None and set(start.tokenizer.get_vocab()) == set(learned.get_vocab())
    return (start.tokenizer if alike else learned), alike


def ids(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Tokenizes captions into ids (B, LENGTH), as StableDiffusionPipeline does."""
    return tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids


def config(tokenizer: CLIPTokenizer, width: int = 96, layers: int = 2) -> CLIPTextConfig:
    """Describes a text encoder of `width`, for `CLIPTextModel` with or without its projection."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        projection_dim=width,
        max_position_embeddings=LENGTH,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
