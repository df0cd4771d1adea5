"""What a pipeline asked its denoiser at one step, and the same question asked again with other captions."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amg.step import Asked
from amg.tensors import broadcast, finite_rows

BY_ROW = (
    "class_labels",
    "down_block_additional_residuals",
    "encoder_attention_mask",
    "encoder_hidden_states",
    "mid_block_additional_residual",
    "timestep_cond",
)
"""Keyword arguments of the denoiser that hold one row per row of the batch."""
WHOLE = ("cross_attention_kwargs", "return_dict")
"""Keyword arguments that hold for the batch as a whole."""
TEXT_PARTS = {
    "sd": ("tokenizer", "text_encoder"),
    "sdxl": ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2"),
}
"""Components that encode a prompt, by kind of text."""
IN_USE = "another call uses this U-Net: one at a time"


@dataclass(frozen=True)
class Record:
    """One call of the denoiser for a batch of B samples: B rows, or 2B as [uncond | cond] under CFG."""

    args: tuple
    kwargs: dict[str, Any]
    output: Tensor
    with_cfg: bool

    @property
    def uncond(self) -> Tensor:
        return self.output.chunk(2)[0]

    @property
    def cond(self) -> Tensor:
        return self.output.chunk(2)[1]


class Records:
    """A forward hook's notes, and embeddings of captions; both live for one call of the pipeline.

    Args:
        pipe: the pipeline.
        text: how it encodes text: `sd`, `sdxl` or None for not at all.
        prompts: of the call, one per picture; None where it has none in words.

    `asked` says what the rows of each call of the denoiser are, the pipeline's own and ours.
    """

    def __init__(self, pipe: Any, text: str | None, prompts: Sequence[str] | None = None):
        self.pipe, self.text, self.prompts = pipe, text, prompts
        self.asked = Asked()
        self._noted: list[tuple[tuple, dict[str, Any], Tensor]] = []
        self._embeddings: dict[str, dict[str, Tensor]] = {}
        self._own = False
        self._thread, self._shared = threading.get_ident(), False

    def announce(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """The hook before a call of the pipeline's own: [uncond | cond] under CFG."""
        if not self._other_thread() and not self._own:
            branches = (self.text is not None,)
            if getattr(self.pipe, "do_classifier_free_guidance", False):
                branches = (False, True)
            rows = len(args[0] if args else kwargs["sample"])
            self.asked.note(rows // len(branches), branches, self.prompts)

    def note(self, module: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        """The hook after it; calls of our own are not noted."""
        if not self._other_thread() and not self._own:
            self._noted.append((args, kwargs, output[0]))

    def take(self, x_t: Tensor) -> Record:
        """The one call since the last step, after a look at its rows.

        Args:
            x_t: what the scheduler steps from, in the variance-preserving view, (B, C, H, W).
        Raises:
            RuntimeError: where the pipeline does not do as those in `pipeline.TESTED` did when they were tested, or
                where a call in another thread used the denoiser.
        """
        name, noted = type(self.pipe).__name__, self._noted
        self._noted = []
        if self._shared:
            raise RuntimeError(IN_USE)
        if len(noted) != 1:
            raise RuntimeError(f"{name} called its denoiser {len(noted)} times in one step; guard expects 1")
        args, kwargs, output = noted[0]
        fed = args[0] if args else kwargs["sample"]
        batch = len(x_t)
        if len(fed) not in (batch, 2 * batch) or len(output) != len(fed):
            raise RuntimeError(f"{name} asked its denoiser for {len(fed)} rows, but steps {batch}")
        ours = x_t.repeat(len(fed) // batch, 1, 1, 1)
        # schedulers keep σ in float32 whatever the network computes in
        largest = ours.nan_to_num(0, 0, 0).abs().max().item()  # rows that are not finite must be so in both
        tolerance = 50 * max(torch.finfo(fed.dtype).eps, 1.2e-7) * largest
        if not torch.allclose(fed[:, : x_t.shape[1]].to(ours), ours, rtol=0, atol=tolerance, equal_nan=True):
            raise RuntimeError(f"{name} fed its denoiser something else than the scheduler's sample")
        return Record(args, kwargs, output, with_cfg=len(fed) == 2 * batch)

    def require_text_encoder(self) -> None:
        """Refuses a pipeline whose text encoder was freed.

        Raises:
            ValueError: naming the missing components.
        """
        missing = [part for part in TEXT_PARTS[self.text] if getattr(self.pipe, part, None) is None]
        if missing:
            raise ValueError(
                f"G_dup embeds captions, and this pipeline has no {' and no '.join(missing)}: keep the text encoder, "
                'or use terms=["spe", "sim"]'
            )

    def repeat(self, record: Record, rows: Tensor, captions: Sequence[str]) -> Tensor:
        """The denoiser's output for some samples under other captions, (len(rows), C, H, W)."""
        if self.text is None:
            raise ValueError(f"{type(self.pipe).__name__} knows no captions: leave out G_dup")
        args, kwargs = self._rows_of(record, rows, (True,))
        embedded = self._embed(captions)
        kwargs["encoder_hidden_states"] = embedded["encoder_hidden_states"].to(record.kwargs["encoder_hidden_states"])
        if "text_embeds" in embedded:
            pooled = kwargs["added_cond_kwargs"]["text_embeds"]
            kwargs["added_cond_kwargs"] = {
                **kwargs["added_cond_kwargs"],
                "text_embeds": embedded["text_embeds"].to(pooled),
            }
        self.asked.note(len(rows), (True,), captions)
        return self._ask(args, kwargs)

    def again(self, record: Record, rows: Tensor, x_t: Tensor) -> Tensor:
        """The denoiser's output for some samples at another x_t: R rows, or 2R as [uncond | cond] under CFG."""
        branches = (False, True) if record.with_cfg else (self.text is not None,)
        args, kwargs = self._rows_of(record, rows, branches)
        fed = args[0] if args else kwargs["sample"]
        more = fed[:, x_t.shape[1] :]  # of inpainting
        fed = torch.cat([x_t.repeat(len(branches), 1, 1, 1), more], dim=1)
        if args:
            args = (fed, *args[1:])
        else:
            kwargs["sample"] = fed
        words = None if self.prompts is None else [self.prompts[i] for i in rows.tolist()]
        self.asked.note(len(rows), branches, words)
        return self._ask(args, kwargs)

    def _other_thread(self) -> bool:
        """Notes a call by another thread, which uses the same denoiser."""
        self._shared |= (other := threading.get_ident() != self._thread)
        return other

    def _ask(self, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """A call of our own."""
        self._own = True
        try:
            return self.pipe.unet(*args, **kwargs)[0]
        finally:
            self._own = False

    def _rows_of(self, record: Record, rows: Tensor, branches: tuple[bool, ...]) -> tuple[tuple, dict[str, Any]]:
        """The recorded arguments of some samples' rows in those branches."""
        count, places = len(record.output), rows.to(record.output.device)
        cond = places + count // 2 if record.with_cfg else places
        places = torch.cat([cond if branch else places for branch in branches])
        args = tuple(_some(value, places, count) for value in record.args)
        return args, {name: self._sliced(name, value, places, count) for name, value in record.kwargs.items()}

    def _sliced(self, name: str, value: Any, places: Tensor, rows: int) -> Any:
        if value is None or name in WHOLE:
            return value
        if name == "added_cond_kwargs":
            return {key: _some(entry, places, rows) for key, entry in value.items()}
        if name in BY_ROW or name in ("sample", "timestep"):
            return _some(value, places, rows)
        pipe = type(self.pipe).__name__
        raise RuntimeError(f"{pipe} passes {name!r} to its denoiser, which guard cannot slice by row")

    def _embed(self, captions: Sequence[str]) -> dict[str, Tensor]:
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._embeddings]
        if new:
            self.require_text_encoder()
            encoded = _encode(self.pipe, self.text, new)
            for i, caption in enumerate(new):
                self._embeddings[caption] = {name: value[i] for name, value in encoded.items()}
        found = [self._embeddings[caption] for caption in captions]
        return {name: torch.stack([one[name] for one in found]) for name in found[0]}


def _encode(pipe: Any, text: str, captions: list[str]) -> dict[str, Tensor]:
    """Captions as the pipeline encodes the prompts of the running call."""
    options = {
        "device": pipe._execution_device,
        "num_images_per_prompt": 1,
        "do_classifier_free_guidance": False,
        "lora_scale": (pipe.cross_attention_kwargs or {}).get("scale"),
        "clip_skip": pipe.clip_skip,
    }
    if text == "sd":
        return {"encoder_hidden_states": pipe.encode_prompt(captions, **options)[0]}
    embeddings, _, pooled, _ = pipe.encode_prompt(captions, **options)
    return {"encoder_hidden_states": embeddings, "text_embeds": pooled}


def _some(value: Any, places: Tensor, rows: int) -> Any:
    """Those rows of a tensor, or of several; what has no rows stays."""
    if isinstance(value, (list, tuple)):
        return type(value)(_some(entry, places, rows) for entry in value)
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if len(value) != rows:
        raise RuntimeError(f"an argument of the denoiser has {len(value)} rows where {rows} were expected")
    return value[places.to(value.device)]


def combine(uncond: Tensor, cond: Tensor, s0: float, rescale: float = 0.0) -> Tensor:
    """Eq. 7, and a share φ of it rescaled to the spread of the conditional output (Lin et al., 2023, Eqs. 14-16)."""
    output = uncond + s0 * (cond - uncond)
    if rescale > 0:
        spread, wanted = (broadcast(value.flatten(1).std(1)) for value in (output, cond))
        output = output * (rescale * wanted / spread + 1 - rescale)
    return output


def cfg_scale(output: Tensor, uncond: Tensor, cond: Tensor, asked: float, rescale: float = 0.0) -> float:
    """s0 of Eq. 7, with a check that the pipeline did combine its predictions so.

    Args:
        output: what the pipeline gives to the scheduler, (B, C, H, W).
        uncond, cond: what the denoiser said.
        asked: the pipeline's guidance scale.
        rescale: its `guidance_rescale` φ: the output is then Eq. 7 times one factor per row.
    Rows that are not finite have no say.

    Returns:
        `asked` where it explains the output, else the s0 that does: ⟨ε̂ − ε_u, Δ⟩ / ⟨Δ, Δ⟩ with Δ = ε_c − ε_u.
    Raises:
        RuntimeError: where no s0 does, with the residual.
    """
    tolerance = 50 * torch.finfo(output.dtype).eps
    finite = finite_rows(output, uncond, cond)
    if not finite.all():
        output, uncond, cond = output[finite], uncond[finite], cond[finite]
    wide = torch.promote_types(output.dtype, torch.float32)
    output, uncond, cond = (value.to(wide).flatten(1) for value in (output, uncond, cond))
    delta = cond - uncond
    plain = uncond + asked * delta
    if rescale > 0:
        plain = plain * ((output * plain).sum(1) / plain.square().sum(1).clamp(min=1e-12))[:, None]
    size = output.norm() + asked * delta.norm()  # what the rounding of Eq. 7 is relative to
    if (output - plain).norm() <= tolerance * size:
        return float(asked)
    s0 = ((output - uncond) * delta).sum() / delta.square().sum()
    residual = ((output - uncond - s0 * delta).norm() / size).item()
    if not residual <= tolerance:  # NaN fails too
        raise RuntimeError(
            f"the pipeline's output is not uncond + s0 (cond − uncond): s0 = {s0.item():.3g} leaves {residual:.1e} "
            f"of it unexplained (allowed {tolerance:.0e}); guard cannot edit it"
        )
    return s0.item()
