"""Choice of the decoder that shows a guidance the predicted images of a pipeline: `decoder_of`."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from amg.bank import TrainingBank
from amg.guidance.base import Guidance, flat
from amg.hub import reachable
from amg.models.latents import (
    Decoder,
    EarlyLinear,
    LatentDecoder,
    LinearDecoder,
    TinyDecoder,
    encodes,
    magnification,
)
from amg.sampling.families import family_of

KINDS = ("auto", "vae", "tiny", "linear")
PUBLISHED = 8
"""Pixels per latent and side of all published tiny autoencoders in `families.FAMILIES`."""
OTHERS = "take decoder=linear, which needs no file, or decoder=vae"


def decoder_of(pipe: Any, kind: str | nn.Module | Decoder = "auto", bank: TrainingBank | None = None) -> Decoder:
    """Returns what decodes x̂0 for a guidance; finished images are decoded by the pipeline's VAE whatever it is.

    Args:
        pipe: an instance of a class in `families.FAMILIES`.
        kind: vae, the pipeline's own; tiny, the `AutoencoderTiny` in the folder `tiny` of the pipeline's or its VAE's
            model, else the published one of its family, fetched where it is not on disk; linear, a map of latents to
            colours that is fitted on images of the bank; auto, tiny where it can be had, else linear early and vae
            late, with a warning. An `AutoencoderTiny`, or a decoder, serves as it is.
        bank: training images.
    Raises:
        ValueError: for an unknown kind, a tiny decoder of other latents, or linear where there are no images to fit.
        FileNotFoundError: for tiny where there is none, in one line.
    """
    if isinstance(kind, str) and kind not in KINDS:
        raise ValueError(f"decoder: unknown {kind!r}; choose {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    if not isinstance(kind, (str, nn.Module)):
        return kind
    if not family_of(pipe).latents:
        if kind not in ("auto", "vae"):
            raise ValueError(f"decoder={kind}: {type(pipe).__name__} samples images, which nothing decodes")
        return lambda x0: x0
    if isinstance(kind, nn.Module):
        return TinyDecoder(kind, pipe.vae)
    if kind == "tiny":
        return TinyDecoder(tiny_of(pipe), pipe.vae)
    if kind == "linear":
        return _linear(pipe, bank)
    if kind == "vae" or type(pipe.vae).__name__ == "AutoencoderTiny":  # the user's own choice
        return LatentDecoder(pipe.vae)
    try:
        return TinyDecoder(tiny_of(pipe), pipe.vae)
    except (FileNotFoundError, ValueError) as error:
        reason = str(error).split(": take ")[0].removeprefix("decoder=tiny: ")
    linear = bank is not None and encodes(pipe.vae)
    how = "by a linear map early and by the VAE late" if linear else "by the VAE, the price of a step each time"
    warnings.warn(f"decoder=auto: {reason}; predicted images are decoded {how}", stacklevel=3)
    full = LatentDecoder(pipe.vae)
    return EarlyLinear(_linear(pipe, bank), full) if linear else full


def bank_of(guidance: Guidance) -> TrainingBank | None:
    """Returns the training images that a guidance compares with, if it does."""
    similarities = (getattr(one, "similarity", None) for one in flat(guidance))
    return next((bank for one in similarities if (bank := getattr(one, "bank", None)) is not None), None)


def tiny_of(pipe: Any) -> nn.Module:
    """Loads the tiny autoencoder of a pipeline, from its folder or its family's.

    Raises:
        FileNotFoundError: where there is none, in one line.
    """
    from diffusers import AutoencoderTiny

    def load(source: Any, **options: Any) -> nn.Module:
        log, word = logging.getLogger("diffusers.configuration_utils"), "block_out_channels"

        def other(record: logging.LogRecord) -> bool:  # not of a key that diffusers itself writes into the file
            return word not in record.getMessage()

        log.addFilter(other)
        try:
            with torch.inference_mode(False):  # a gradient passes it whatever the mode of the call
                return AutoencoderTiny.from_pretrained(source, use_safetensors=True, dtype=pipe.vae.dtype, **options)
        finally:
            log.removeFilter(other)

    folders = [Path(str(pipe.config.get("_name_or_path"))), Path(str(pipe.vae.config.get("_name_or_path"))).parent]
    for folder in folders:
        if (folder / "tiny" / "config.json").is_file():
            return load(folder / "tiny", local_files_only=True)
    name, factor = family_of(pipe).tiny, magnification(pipe.vae)
    if not name:
        raise FileNotFoundError(f"decoder=tiny: no tiny autoencoder is known of {type(pipe).__name__}: {OTHERS}")
    if factor != PUBLISHED:
        raise FileNotFoundError(
            f"decoder=tiny: {name} decodes a latent to {PUBLISHED}×{PUBLISHED} pixels, and this "
            f"{type(pipe).__name__}'s VAE to {factor}×{factor}: {OTHERS}"
        )
    for local in (True, False):
        if local or reachable():
            try:
                return load(name, local_files_only=local)
            except (OSError, ValueError):  # what diffusers raises for a missing file, and for a broken one
                continue
    raise FileNotFoundError(f"decoder=tiny: {name} is not on disk and could not be fetched: {OTHERS}")


def _linear(pipe: Any, bank: TrainingBank | None) -> LinearDecoder:
    if bank is None:
        raise ValueError("decoder=linear: a map is fitted on training images, and this guidance has no bank of them")
    return LinearDecoder(pipe.vae, bank.pictures)
