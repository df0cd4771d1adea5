"""Detectors of memorization: one file each, scored by what unguided sampling shows."""

from amg.detectors.anisotropy import Anisotropy
from amg.detectors.base import Detector
from amg.detectors.dsm import DSM
from amg.detectors.magnitude import Magnitude
from amg.detectors.nearest import NearestPicture
from amg.detectors.norms import Norms
from amg.detectors.observe import Observation, Observer, network_calls, observe, places
from amg.detectors.one_step import OneStep

__all__ = [
    "DSM",
    "Anisotropy",
    "Detector",
    "Magnitude",
    "NearestPicture",
    "Norms",
    "Observation",
    "Observer",
    "OneStep",
    "network_calls",
    "observe",
    "places",
]
