"""Record of a pipeline's call of its denoiser at one step, and the same call again with other captions."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amg.sampling.families import ATTENTION_OPTIONS, Family
from amg.step import Asked
from amg.tensors import finite_rows

BY_ROW = (
    "class_labels",
    "down_block_additional_residuals",
    "encoder_attention_mask",
    "encoder_hidden_states",
    "encoder_hidden_states_mask",
    "guidance",
    "mid_block_additional_residual",
    "pooled_projections",
    "t",
    "timestep",
    "timestep_cond",
)
"""Arguments of the denoiser that hold one row per row of the batch."""
IN_LISTS = ("cap_feats", "x")
"""Arguments that are lists of one entry per row."""
WHOLE = ("img_ids", "img_shapes", "return_dict", "txt_ids", *ATTENTION_OPTIONS)
"""Arguments that hold for the batch as a whole."""
IN_USE = "another call uses this denoiser: one at a time"


@dataclass(frozen=True)
class Call:
    """One call of the denoiser for a batch of B samples, with B rows for each of its branches in turn."""

    arguments: dict[str, Any]
    """By name; the first is what the denoiser is fed."""
    output: Tensor
    """In the scheduler's layout."""
    branches: tuple[bool, ...]
    """True is the conditional branch; a pipeline without text has the unconditional one alone."""


@dataclass(frozen=True)
class Record:
    """The calls of one step: one prediction per sample, or under CFG two."""

    calls: tuple[Call, ...]

    @property
    def with_cfg(self) -> bool:
        return sum(len(call.branches) for call in self.calls) == 2

    def branch(self, conditional: bool) -> Tensor:
        """Returns the prediction of one branch, B rows."""
        return _branches(self.calls, [call.output for call in self.calls])[conditional]


class Records:
    """A forward hook's notes, and embeddings of captions; both live for one call of the pipeline.

    Args:
        pipe: the pipeline.
        family: its row.
        call: arguments of the pipeline's call by name, with their defaults.
        prompts: of the call, one per image; None where it has none in words.

    `asked` says what the rows of each call of the denoiser are, the pipeline's own and ours.
    """

    def __init__(self, pipe: Any, family: Family, call: Mapping[str, Any], prompts: Sequence[str] | None = None):
        self.pipe, self.family, self.call, self.prompts = pipe, family, call, prompts
        self.asked = Asked()
        self.denoiser = getattr(pipe, family.denoiser)
        forward = type(getattr(self.denoiser, "_orig_mod", self.denoiser)).forward  # of a compiled one
        self._signature = inspect.signature(forward)
        self._noted: list[tuple[dict[str, Any], Tensor]] = []
        self._embeddings: dict[str, dict[str, Tensor]] = {}
        self.own, self._arguments = False, {}
        self._thread, self._shared = threading.get_ident(), False

    @property
    def with_cfg(self) -> bool:
        """Tells whether the running call uses CFG."""
        return self.family.uses_cfg(self.pipe, self.call)

    @property
    def branches(self) -> tuple[bool, ...]:
        """The branches of the pipeline's next call of its denoiser, as it is expected."""
        if not self.with_cfg:
            return self._plain
        order = self.family.order
        return order if self.family.calls == 1 else (order[len(self._noted) % 2],)

    @property
    def _plain(self) -> tuple[bool]:
        """The branches of a pipeline that makes one prediction a step."""
        return (bool(self.family.encoded),)

    def announce(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """The hook before a call of the pipeline's own."""
        if not self._other_thread() and not self.own:
            branches = self.branches
            self._arguments = self.by_name(args, kwargs)
            self.asked.note(len(self.fed(self._arguments)) // len(branches), branches, self.prompts)

    def note(self, module: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        """The hook after it; calls of our own are not noted."""
        if not self._other_thread() and not self.own:
            self._noted.append((self.by_name(args, kwargs), self.family.answer(output[0])))

    def unpack(self, x: Tensor) -> Tensor:
        """Returns samples of the running step in the scheduler's layout as (R, C, h, w)."""
        return self.family.unpack(x, self._arguments)

    def take(self, ours: Tensor) -> Record:
        """The calls since the last step, after a look at their rows.

        Args:
            ours: what the denoiser is to be fed for the scheduler's sample, (B, C, H, W).
        Raises:
            RuntimeError: where the pipeline does not do as its family did when it was tested, or where a call in
                another thread used the denoiser.
        """
        name, noted, batch = type(self.pipe).__name__, self._noted, len(ours)
        self._noted = []
        if self._shared:
            raise RuntimeError(IN_USE)
        fed = [self.fed(arguments) for arguments, _ in noted]
        rows = [len(value) for value in fed]
        if any(n % batch for n in rows) or rows != [len(output) for _, output in noted]:
            raise RuntimeError(f"{name} asked its denoiser for {sum(rows)} rows, but steps {batch}")
        if sum(rows) not in (batch, 2 * batch):
            raise RuntimeError(
                f"{name} asked its denoiser for {sum(rows) // batch} predictions in one step, not 1 or 2"
            )
        # schedulers keep σ in float32 whatever the network computes in
        ours = self.family.pack(ours)
        largest = ours.nan_to_num(0, 0, 0).abs().max().item()  # rows that are not finite must be so in both
        for value in fed:
            own = value[:, : ours.shape[1]].to(ours)
            tolerance = 50 * max(torch.finfo(value.dtype).eps, 1.2e-7) * largest
            same = torch.cat([ours] * (len(own) // batch))
            if not torch.allclose(own, same, rtol=0, atol=tolerance, equal_nan=True):
                raise RuntimeError(f"{name} fed its denoiser something else than the scheduler's sample")
        order = list(self.family.order if sum(rows) == 2 * batch else self._plain)
        calls = []
        for n, (arguments, output) in zip(rows, noted, strict=True):
            branches, order = order[: n // batch], order[n // batch :]
            calls.append(Call(arguments, output[:, : ours.shape[1]], tuple(branches)))
        return Record(tuple(calls))

    def require_text_encoder(self) -> None:
        """Refuses a pipeline whose text encoder was freed.

        Raises:
            ValueError: naming the missing components.
        """
        missing = [part for part in self.family.parts() if getattr(self.pipe, part, None) is None]
        if missing:
            raise ValueError(
                f"G_dup embeds captions, and this pipeline has no {' and no '.join(missing)}: keep the text encoder, "
                'or use terms=["spe", "sim"]'
            )

    def repeat(self, record: Record, rows: Tensor, captions: Sequence[str]) -> Tensor:
        """The denoiser's output for some samples under other captions, R rows in the scheduler's layout."""
        if not self.family.encoded:
            raise ValueError(f"{type(self.pipe).__name__} knows no captions: leave out G_dup")
        call = next(call for call in record.calls if True in call.branches)
        arguments = conditioned(self._rows_of(call, rows, (True,)), self._embed(captions))
        self.asked.note(len(rows), (True,), captions)
        return self._ask(arguments)[:, : call.output.shape[1]]

    def again(self, record: Record, rows: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The denoiser's predictions for some samples at another place, R rows in the scheduler's layout.

        Args:
            x: what the denoiser is to be fed, (R, C, H, W).
        Returns:
            The prediction without CFG, or its unconditional branch, and the conditional branch or None.
        """
        outputs, packed = [], self.family.pack(x)
        words = None if self.prompts is None else [self.prompts[i] for i in rows.tolist()]
        for call in record.calls:
            arguments = self.place(self._rows_of(call, rows, call.branches), packed)
            self.asked.note(len(rows), call.branches, words)
            outputs.append(self._ask(arguments)[:, : call.output.shape[1]])
        found = _branches(record.calls, outputs)
        return (found[False], found[True]) if record.with_cfg else (*found.values(), None)

    def place(self, arguments: dict[str, Any], packed: Tensor) -> dict[str, Any]:
        """Returns the arguments of a call with R other samples in each of its branches.

        Args:
            packed: R rows in the scheduler's layout.
        """
        fed = self.fed(arguments)
        here = packed.to(fed).repeat(len(fed) // len(packed), *[1] * (packed.ndim - 1))
        # what is more, e.g. the mask of inpainting, stays
        return {**arguments, next(iter(arguments)): self.family.feed(torch.cat([here, fed[:, here.shape[1] :]], dim=1))}

    def predict(self, arguments: dict[str, Any], packed: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """The denoiser's output for R rows of samples and of a condition, at the step of some call's arguments.

        Args:
            arguments: of a call of B or 2B rows.
            packed: R rows in the scheduler's layout.
            condition: R rows of what `conditions` returns.
        """
        fed = self.fed(arguments)
        call = Call(arguments, fed, (True,))
        some = self._rows_of(call, torch.arange(len(packed)) % len(fed), (True,))
        self.asked.note(len(packed), (True,), None)
        return self._ask(conditioned(self.place(some, packed), condition))[:, : packed.shape[1]]

    def fed(self, arguments: dict[str, Any]) -> Tensor:
        """Returns what the denoiser is fed, in the scheduler's layout."""
        return self.family.fed(next(iter(arguments.values())))

    def by_name(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call of the denoiser by name, in the order of its signature."""
        arguments = self._signature.bind(None, *args, **kwargs).arguments
        arguments.pop("self")
        return arguments

    def _other_thread(self) -> bool:
        """Notes a call by another thread, which uses the same denoiser."""
        self._shared |= (other := threading.get_ident() != self._thread)
        return other

    def _ask(self, arguments: dict[str, Any]) -> Tensor:
        """A call of our own, apart from what diffusers caches between the pipeline's."""
        cached = getattr(self.denoiser, "is_cache_enabled", False)
        self.own = True
        try:
            with self.denoiser.cache_context("amg") if cached else nullcontext():
                return self.family.answer(self.denoiser(**arguments)[0])
        finally:
            self.own = False

    def _rows_of(self, call: Call, rows: Tensor, branches: tuple[bool, ...]) -> dict[str, Any]:
        """The arguments of a call for some samples' rows in those of its branches."""
        count = len(call.output)
        batch = count // len(call.branches)
        places = rows.to(call.output.device)
        places = torch.cat([places + batch * call.branches.index(branch) for branch in branches])
        first = next(iter(call.arguments))
        return {name: self._sliced(name, value, places, count, first) for name, value in call.arguments.items()}

    def _sliced(self, name: str, value: Any, places: Tensor, rows: int, first: str) -> Any:
        if name in IN_LISTS:
            return [value[i] for i in places.tolist()]
        if name in (*BY_ROW, *self.family.by_row, first):
            return _some(value, places, rows)
        if value is None or name in WHOLE:
            return value
        if name == "added_cond_kwargs":
            return {key: _some(entry, places, rows) for key, entry in value.items()}
        pipe = type(self.pipe).__name__
        raise RuntimeError(f"{pipe} passes {name!r} to its denoiser, which guard cannot slice by row")

    def _embed(self, captions: Sequence[str]) -> dict[str, Any]:
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._embeddings]
        if new:
            self.require_text_encoder()
            encoded = self.family.encode(self.pipe, new, self.call)
            for i, caption in enumerate(new):
                self._embeddings[caption] = {name: value[i] for name, value in encoded.items()}
        found = [self._embeddings[caption] for caption in captions]
        return {name: self.family.join([one[name] for one in found]) for name in found[0]}


def conditions(family: Family, arguments: Mapping[str, Any], branches: Sequence[bool]) -> dict[bool, dict[str, Tensor]]:
    """Returns the inputs of each branch of a call of the denoiser beside x and t: tensors by name, B rows each."""
    told = {**arguments, **(arguments.get("added_cond_kwargs") or {})}
    names = [name for name in (*family.encoded, "time_ids") if isinstance(told.get(name), Tensor)]
    parts = {name: told[name].chunk(len(branches)) for name in names}
    return {branch: {name: parts[name][i] for name in names} for i, branch in enumerate(branches)}


def conditioned(arguments: Mapping[str, Any], condition: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of the denoiser with others of a condition."""

    def like(value: Any, old: Any) -> Any:
        return value.to(old) if isinstance(old, Tensor) else value

    arguments, added = dict(arguments), dict(arguments.get("added_cond_kwargs") or {})
    for name, value in condition.items():
        holder = arguments if name in arguments else added
        holder[name] = like(value, holder[name])
    return arguments | ({"added_cond_kwargs": added} if "added_cond_kwargs" in arguments else {})


def _branches(calls: Sequence[Call], outputs: Sequence[Tensor]) -> dict[bool, Tensor]:
    """Each branch's rows of the outputs of some calls."""
    return {
        branch: rows
        for call, output in zip(calls, outputs, strict=True)
        for branch, rows in zip(call.branches, output.chunk(len(call.branches)), strict=True)
    }


def _some(value: Any, places: Tensor, rows: int) -> Any:
    """Those rows of a tensor, or of several; what has no rows stays."""
    if isinstance(value, (list, tuple)):
        return type(value)(_some(entry, places, rows) for entry in value)
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if len(value) != rows:
        raise RuntimeError(f"an argument of the denoiser has {len(value)} rows where {rows} were expected")
    return value[places.to(value.device)]


def cfg_scale(output: Tensor, asked: float, uncond: Tensor, cond: Tensor, combined: Tensor | None = None) -> float:
    """s0 of Eq. 7, with a check that the pipeline did combine its predictions so.

    Rows that are not finite have no say.

    Args:
        output: what the pipeline gives to the scheduler, B rows.
        asked: the s0 that the call asks for.
        uncond, cond: what the denoiser said.
        combined: what the family makes of both at `asked`; Eq. 7 where None.
    Returns:
        `asked` where it explains the output, else the s0 that does: ⟨ε̂ − ε_u, Δ⟩ / ⟨Δ, Δ⟩ with Δ = ε_c − ε_u.
    Raises:
        RuntimeError: where no s0 does, with the residual.
    """
    combined = uncond + asked * (cond - uncond) if combined is None else combined
    tolerance = 50 * torch.finfo(output.dtype).eps
    finite = finite_rows(output, uncond, cond)
    wide = torch.promote_types(output.dtype, torch.float32)
    output, uncond, cond, combined = (v[finite].to(wide).flatten(1) for v in (output, uncond, cond, combined))
    delta = cond - uncond
    size = output.norm() + asked * delta.norm()  # what the rounding of Eq. 7 is relative to
    if (output - combined).norm() <= tolerance * size:
        return float(asked)
    s0 = ((output - uncond) * delta).sum() / delta.square().sum()
    residual = ((output - uncond - s0 * delta).norm() / size).item()
    if not residual <= tolerance:  # NaN fails too
        raise RuntimeError(
            f"the pipeline's output is not uncond + s0 (cond − uncond): s0 = {s0.item():.3g} leaves {residual:.1e} "
            f"of it unexplained (allowed {tolerance:.0e}); guard cannot edit it"
        )
    return s0.item()
