"""What the metrics need beside the samples, looked for before any is drawn."""

from __future__ import annotations

from pathlib import Path

from experiments.config.schema import MetricsConfig

EXTRACTORS = ("efficientnet_lite0", "inception", "none")


def missing(metrics: MetricsConfig) -> list[str]:
    """Which keys of `metrics` name what is not there, one line each."""
    lines = []
    for key, look in (("extractor", _extractor), ("reference", _reference), ("scorer", _scorer)):
        try:
            look(metrics)
        except (ValueError, FileNotFoundError) as error:
            lines.append(complaint(metrics, key, error))
    return lines


def complaint(metrics: MetricsConfig, key: str, error: Exception) -> str:
    """An error as a line that names the key of `metrics`, and no other."""
    return f"metrics.{key}={getattr(metrics, key)}: {str(error).removeprefix('data.path: ')}"


def _extractor(metrics: MetricsConfig) -> None:
    if metrics.extractor not in EXTRACTORS:
        raise ValueError(f"choose {', '.join(EXTRACTORS[:-1])} or {EXTRACTORS[-1]}")
    if metrics.extractor == "inception":
        from amg.metrics.extractors import inception_file

        inception_file()
    if metrics.extractor == "efficientnet_lite0":
        from amg.metrics.efficientnet import weights_file

        weights_file()


def _reference(metrics: MetricsConfig) -> None:
    if metrics.extractor == "none" or metrics.reference == "bank":
        return
    from amg.bank.folder import pictures_in

    pictures_in(Path(metrics.reference))


def _scorer(metrics: MetricsConfig) -> None:
    """A name of the hub is no path: where its weights are not on disk, a table says so."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    folder = Path(metrics.scorer)
    if metrics.scorer in ("lab", "clip", "none"):
        return
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError("that folder holds no CLIP in transformers' format: config.json is missing")
    try:
        validate_repo_id(metrics.scorer)
    except HFValidationError:
        if not folder.is_dir():
            raise FileNotFoundError("no such folder; lab, clip, a folder or hub name of a CLIP, or none") from None
