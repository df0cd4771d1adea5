"""Finished images that are copies: `guard` draws them again, or paints them black."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from amg.guidance.base import Guidance, flat
from amg.similarity.base import Similarity
from amg.similarity.copies import SampleReport, as_tensor, copy_threshold, derived_seed, find_copies

ACTIONS = ("flag", "resample", "refuse")
WHOLE = ("ip_adapter_image", "ip_adapter_image_embeds", "num_images_per_prompt")
"""Arguments of a pipeline's call that have no row per prompt, though their names speak of prompts or images."""


def guide_of(guidance: Guidance, judge: Similarity | None) -> Similarity:
    """Returns what finished images are compared by: the similarity of the guidance, else the judge.

    Raises:
        ValueError: where there is neither, or the similarity has no copy threshold.
    """
    found = next((one.similarity for one in flat(guidance) if hasattr(one, "similarity")), judge)
    if found is None:
        raise ValueError(
            f"on_copy compares finished images with a bank, and {type(guidance).__name__} has none: give judge=, a "
            "similarity of the training images"
        )
    copy_threshold(found, "judge")
    return found


def check(on_copy: str | None, tries: int, guidance: Guidance, judge: Similarity | None) -> None:
    """Refuses what `guard` cannot do with copies.

    Raises:
        ValueError: naming the argument.
    """
    if on_copy is None:
        if judge is not None:
            raise ValueError(f"judge: without on_copy nothing is judged; choose {', '.join(ACTIONS)}")
        return
    if on_copy not in ACTIONS:
        raise ValueError(f"on_copy: unknown {on_copy!r}; choose {', '.join(ACTIONS)}")
    if isinstance(tries, bool) or not isinstance(tries, int) or tries < 1:
        raise ValueError(f"tries must be an integer >= 1, got {tries!r}")
    guide_of(guidance, judge)
    if judge is not None:
        copy_threshold(judge, "judge")


def checked(guarded: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """A guarded call whose copies are flagged, drawn again or painted black; the reports go to `guarded.report`."""
    how, guide = guarded.on_copy, guide_of(guarded.guidance, guarded.judge)
    named = guarded.bound(args, kwargs)
    latent, modular = named.get("output_type") == "latent", guarded.family.guider
    if latent and how != "flag":
        raise ValueError(f"on_copy={how} changes images: leave out output_type='latent'")
    if modular and named.get("output") != "images":
        raise ValueError("on_copy looks at the images of a ModularPipeline: call it with output='images'")
    output, call = guarded.run(args, kwargs)
    judge = guarded.judge if guarded.judge is not guide else None

    def reports(images: Any, call: Any) -> list[SampleReport]:
        images = call.full_decode(call.x_prev) if latent else as_tensor(_scaled(images))
        found = find_copies(images, getattr(guide, "bank", None), guide, judge=judge)
        steps = call.steps_guided()
        return [replace(one, steps_guided=n) for one, n in zip(found, steps, strict=True)]

    images = _images(output)
    report = reports(images, call)
    redraws = guarded.tries if how == "resample" else 0
    seeds = call.seeds(len(report), draw=True) if redraws else ()
    for k in range(1, redraws + 1):
        rows = [i for i, one in enumerate(report) if one.copy]
        if not rows:
            break
        # the first redraw is another first noise; from the second on the strong constants help
        guidance = guarded.guidance
        if k > 1 and isinstance(guidance, Guidance):  # a plain function serves as a guidance
            guidance = guidance.stronger()
        arguments = _rows_of(named, rows, [derived_seed(seeds[i], k) for i in rows], len(report))
        drawn, called = guarded.under(guidance).run((), arguments)
        for i, image, one in zip(rows, _images(drawn), reports(_images(drawn), called), strict=True):
            images[i], report[i] = image, replace(one, tries=k)
    for i, one in enumerate(report):
        if one.copy and how != "flag":
            images[i], report[i] = _black(images[i]), replace(one, refused=True)
    vars(guarded)["report"] = report
    return output


def _images(output: Any) -> Any:
    """The images of a pipeline's output, in which they can be replaced."""
    if isinstance(output, tuple):
        return output[0]
    return getattr(output, "images", output)


def _scaled(images: Any) -> Any:
    """As `find_copies` takes images: pipelines' tensors lie in [0, 1]."""
    return images * 2 - 1 if isinstance(images, Tensor) else images


def _black(image: Any) -> Any:
    if isinstance(image, Image.Image):
        return Image.new(image.mode, image.size)
    return torch.zeros_like(image) if isinstance(image, Tensor) else np.zeros_like(image)


def _rows_of(named: Mapping[str, Any], rows: Sequence[int], seeds: Sequence[int], images: int) -> dict[str, Any]:
    """The arguments of a call that draws some of its images again, one row each, from other seeds.

    Args:
        named: the call's arguments as they were given, by name.
        rows: which images.
        images: how many there were.
    """
    each = named.get("num_images_per_prompt") or 1
    prompts = images // each
    given, generators = {}, [torch.Generator().manual_seed(seed) for seed in seeds]
    for name, value in named.items():
        by_row = ("prompt" in name or "image" in name) and name not in WHOLE
        if name == "latents" and value is not None:  # the first noise: white in whatever layout
            value = torch.stack([torch.randn(value.shape[1:], generator=one) for one in generators]).to(value)
        elif by_row and isinstance(value, (list, tuple)) and len(value) == prompts:
            value = [value[row // each] for row in rows]
        elif by_row and isinstance(value, Tensor) and len(value) in (1, prompts):
            value = value[torch.tensor([row // each if len(value) > 1 else 0 for row in rows], device=value.device)]
        elif name == "prompt" and isinstance(value, str):
            value = [value] * len(rows)
        elif by_row and isinstance(value, str):
            value = [value] * len(rows)
        given[name] = value
    if "num_images_per_prompt" in given:
        given["num_images_per_prompt"] = 1
    if "batch_size" in given:
        given["batch_size"] = len(rows)
    return given | {"generator": generators}
