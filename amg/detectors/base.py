"""The interface of every detector of memorization."""

from __future__ import annotations

from torch import Tensor

from amg.step import Step


class Detector:
    """Scores a (prompt, seed) by what unguided sampling shows of it; a larger score is more likely memorized.

    A detector names the network calls that it wants to see, takes a few numbers from each (`see`) and turns all of
    them into a score (`score`). It holds settings only; row i of all that it returns depends on row i alone.
    `amg.detectors.observe` makes the calls.
    """

    needs_prompts = False
    """True if it compares the prediction under a prompt with the one without: n/a for a model without text."""
    learns = False
    """True if it must be shown ordinary samples first, see `learn`."""
    noise: tuple[int, ...] = ()
    """Looks at pure noise x_T, each as if it were at that place of the schedule: 0 is the first step, -1 the last."""
    chain: slice = slice(0)
    """The steps of the unguided trajectory that it watches: `slice(None)` all, `slice(-1, None)` the last."""

    def see(self, step: Step, after: Tensor | None) -> Tensor:
        """Returns the numbers that it takes from one network call.

        Args:
            step: a look at pure noise or a step of the trajectory.
            after: x_{t−1}, (B, C, H, W), in the trajectory; None at pure noise.
        Returns:
            (B, F).
        """
        raise NotImplementedError

    def keep(self, seen: Tensor) -> Tensor:
        """Reduces all that it saw of a sample to the numbers that `score` needs, (B, S, F) to (B, S, G).

        A detector that compares whole images of two looks reduces them here, so that no record holds them.
        """
        return seen

    def score(self, seen: Tensor) -> Tensor:
        """(B,), from all that it kept, (B, S, G): first its looks at noise in their order, then the steps in theirs."""
        raise NotImplementedError

    def learn(self, ordinary: Tensor) -> Detector:
        """The detector that knows what it sees of n ordinary samples, (n, S, F)."""
        return self


def direction(step: Step, name: str) -> Tensor:
    """Δε = ε(x_t, y) − ε(x_t), (B, C, H, W).

    Raises:
        ValueError: where the step knows no conditional prediction beside an unconditional one.
    """
    if step.eps_cond is None:
        raise ValueError(
            f"detector.{name}: compares the predictions with and without the prompt; this trajectory has one only "
            "(no prompt, or s0=1)"
        )
    return step.eps_cond - step.eps_uncond
