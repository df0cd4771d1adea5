"""Constants of Anti-Memorization Guidance: one table by model, similarity and strength, each entry with its source.

`AntiMemorizationGuidance.preset` reads it, and so do the experiments.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from amg.bank import TrainingBank
from amg.guidance.looks import Looks
from amg.similarity.base import Similarity
from amg.thresholds import Always, Calibrated, Constant, Exponential, Parabolic, Threshold

CURVES = Path(__file__).with_name("curves")
"""Calibrated thresholds, as `task=calibrate` writes them: <model>-<similarity>.json."""


@dataclass(frozen=True)
class Preset:
    """Constants for one model, similarity and strength."""

    c1: float
    c2: float
    c3: float
    threshold: Threshold | str
    """λ_t, or "calibrated": the curve of the model and similarity in `CURVES`."""
    copy: float
    """λ of `threshold=constant` and, at t = 0, of `threshold=parabolic`: where an image counts as a copy."""
    early: float
    """λ of `threshold=parabolic` at t = 1, ours: early steps need more evidence. Untuned."""
    source: str
    normalize: bool = False
    margin: float = 0.0


@dataclass(frozen=True)
class Presets:
    """Both strengths of one model and similarity: `main` clears the copy threshold, `strong` the stricter one."""

    main: Preset
    strong: Preset


RELEASED_SD = "released code for v1.4: decay(t; 0.3, 0.4, 0.005), 6.5/0.5, (6.5 − s1)/0.3, 100; untuned here"
SD = Presets(
    main=Preset(13, 6.5 / 0.3, 100, Exponential(0.4, 0.3, 4.995), 0.5, 0.6, RELEASED_SD),
    strong=Preset(13, 6.5 / 0.3, 100, Exponential(0.3, 0.2, 4.995), 0.4, 0.5, RELEASED_SD + "; λ a tenth lower"),
)
TODAY = Presets(*(replace(one, source=f"untuned: Stable Diffusion's, {one.source}") for one in (SD.main, SD.strong)))
"""For transformers and flows, in whose variance-preserving view a guidance acts."""
CIFAR10 = Presets(  # c1 and c2 have no effect: nL2 is negative, and Eqs. 13 and 15 then give 0
    main=Preset(0, 0, 12, Parabolic(-1.5, -1.2), -1.4, -1.2, "untuned", normalize=True),
    strong=Preset(0, 0, 12, Parabolic(-1.7, -1.4), -1.6, -1.4, "untuned", normalize=True),
)
DRAWN = "tuned on the drawn world, seeds below 1504"
CARD = "tuned on the network (model card)"
LAB = "tuned on the network, on half of the planted images' captions (model card)"

PRESETS: dict[tuple[str, str], Presets] = {
    ("closed_form", "pca"): Presets(
        main=Preset(13, 20, 30, Constant(0.99), 0.97, 0.985, DRAWN, normalize=True, margin=0.2),
        strong=Preset(13, 20, 20, Constant(0.9), 0.93, 0.95, DRAWN, normalize=True, margin=0.2),
    ),
    ("closed_form", "nl2"): Presets(
        main=Preset(0, 0, 40, Constant(-1.05), -0.93, -0.85, DRAWN, normalize=True, margin=0.3),
        strong=Preset(0, 0, 40, Constant(-1.25), -1.14, -1.05, DRAWN, normalize=True, margin=0.3),
    ),
    ("ddpm_cifar10", "nl2"): CIFAR10,
    ("iddpm_cifar10", "nl2"): CIFAR10,
    ("iddpm_cifar10_cond", "nl2"): CIFAR10,
    **{
        (model, similarity): TODAY
        for model in ("sd3", "flux", "flux2", "qwen_image", "pixart", "sana", "z_image", "pipeline")
        for similarity in ("sscd", "clip_sscd")
    },
    **{(model, similarity): SD for model in ("sd", "sd_v2", "sdxl", "local") for similarity in ("sscd", "clip_sscd")},
    ("lab_ddpm", "nl2"): Presets(
        main=Preset(0, 0, 40, "calibrated", -0.93, -0.85, CARD, normalize=True, margin=0.3),
        strong=Preset(0, 0, 40, Constant(-1.25), -1.14, -1.05, "untuned", normalize=True, margin=0.3),
    ),
    ("lab_sd", "correlation"): Presets(
        main=Preset(13, 20, 20, "calibrated", 0.977, 0.98, LAB, normalize=True, margin=0.1),
        strong=Preset(13, 20, 24, Constant(0.9), 0.94, 0.95, "untuned", normalize=True, margin=0.1),
    ),
    ("lab_flow", "correlation"): Presets(  # c1 and c2 have no effect without classifier-free guidance
        main=Preset(13, 20, 40, "calibrated", 0.977, 0.98, LAB, normalize=True, margin=0.35),
        strong=Preset(13, 20, 48, Constant(0.9), 0.94, 0.95, "untuned", normalize=True, margin=0.35),
    ),
    **{
        (model, "pca"): Presets(
            main=Preset(13, 20, 16, Constant(0.95), 0.97, 0.98, "untuned", normalize=True, margin=0.05),
            strong=Preset(13, 20, 24, Constant(0.9), 0.93, 0.96, "untuned", normalize=True, margin=0.1),
        )
        for model in ("lab_sd", "lab_flow")
    },
    # a guide that is a network can be fooled
    **{
        (model, similarity): Presets(
            main=Preset(13, 20, 16, Constant(0.9), 0.93, 0.96, "untuned", normalize=True),
            strong=Preset(13, 20, 24, Constant(0.85), 0.9, 0.94, "untuned", normalize=True),
        )
        for model in ("lab_sd", "lab_flow")
        for similarity in ("lab_guide", "lab_two_stage", "lab_judge")
    },
}


COPY_THRESHOLDS: dict[tuple[str, str], tuple[float, float]] = {
    **{(model, "pca"): (0.97, 0.93) for model in ("closed_form", "lab_ddpm")},
    **{(model, "nl2"): (-0.93, -1.14) for model in ("closed_form", "lab_ddpm")},
    **{(model, "pca"): (0.97, 0.93) for model in ("lab_sd", "lab_flow")},
    **{(model, "nl2"): (-0.89, -1.16) for model in ("lab_sd", "lab_flow")},
}
"""Thresholds `copy` and `strict` of a similarity, where its own do not fit the model's images: 1 and 5 % of the exact
novel samples of the drawn world lie beyond them."""


def constants(model: str, similarity: str, strength: str = "main") -> Preset:
    """Looks up the constants of a model and similarity.

    Args:
        strength: main or strong.
    Raises:
        KeyError: if the table has no entry for them.
    """
    return getattr(PRESETS[model, similarity], strength)


def threshold(model: str, similarity: str, strength: str = "main", kind: str = "preset") -> Threshold:
    """Returns λ_t of a model and similarity.

    Args:
        kind: preset (the table's), always, constant, parabolic or calibrated.
    Raises:
        KeyError: if the table has no entry for them.
        FileNotFoundError: if no curve was learned for them.
    """
    if kind == "always":
        return Always()
    chosen = constants(model, similarity, strength)
    if kind == "constant":
        return Constant(chosen.copy)
    if kind == "parabolic":
        return Parabolic(chosen.copy, chosen.early)
    if kind == "calibrated" or chosen.threshold == "calibrated":
        return curve(CURVES / f"{model}-{similarity}.json")
    return chosen.threshold  # type: ignore[return-value]


def curve(path: Path) -> Calibrated:
    """Reads a calibrated threshold that `task=calibrate` wrote."""
    learned = json.loads(path.read_text(encoding="utf8"))
    return Calibrated(times=learned["times"], values=learned["values"])


def named_looks(name: str | Path) -> Looks:
    """Reads the rests between looks that were learned with a curve.

    Args:
        name: <model>-<similarity> for a curve in `CURVES`, or a file that `task=calibrate` wrote.
    Raises:
        FileNotFoundError: where there are none, in one line.
    """
    path = Path(name) if Path(name).is_file() else CURVES / f"{name}.json"
    try:
        return Looks.read(path)
    except FileNotFoundError:
        known = ", ".join(sorted(file.stem for file in CURVES.glob("*.json") if '"looks"' in file.read_text("utf8")))
        raise FileNotFoundError(
            f"looks={name}: nothing was learned, amg.guidance.looks.learn does; known: {known or 'none'}, and every"
        ) from None


def preset(name: str, bank: TrainingBank, similarity: Similarity | None = None) -> dict[str, Any]:
    """Returns keyword arguments of `AntiMemorizationGuidance`.

    Args:
        name: sd-main or sd-strong.
        bank: training images with captions.
        similarity: σ_t; SSCD from its published file in the working directory where None.
    Raises:
        ValueError: for an unknown name, or if SSCD's file is not the published one.
        FileNotFoundError: if SSCD's file is missing; it says how to fetch it.
    """
    names = {f"sd-{strength}": strength for strength in ("main", "strong")}
    if name not in names:
        raise ValueError(f"no preset {name!r}; choose among {', '.join(names)}")
    if similarity is None:
        from amg.similarity.sscd import SSCD
        from amg.similarity.sscd_file import SHA256, SIZE

        similarity = SSCD(bank, size=SIZE, sha256=SHA256)
    chosen = constants("sd", "sscd", names[name])
    fields = {field: getattr(chosen, field) for field in ("c1", "c2", "c3", "normalize", "margin")}
    looks = named_looks("sd-sscd") if (CURVES / "sd-sscd.json").is_file() else None
    return {"similarity": similarity, "threshold": chosen.threshold, "looks": looks} | fields
