"""Han's batch-wise noise adjustment and Wen's embedding optimization, against cases worked by hand."""

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_pipelines import sdxl, stable_diffusion
from toy import Toy

from amg.guidance import Chain
from amg.guidance.rivals.han import InitialNoiseAdjustment
from amg.guidance.rivals.jain import StaticTransitionPoint
from amg.guidance.rivals.somepalli import GaussianNoiseInput
from amg.guidance.rivals.wen import PromptEmbeddingOptimization
from amg.models.stable_diffusion import StableDiffusion
from amg.sampling import sample
from amg.step import Start

PROMPTS, SEEDS = ["a cat", "two dogs", "sea", "elk"], [4, 5, 6, 7]


def sd(build=stable_diffusion, **options):
    return StableDiffusion(build(dtype=torch.float64, **options))


def drawn(model, guidance=None, rows=slice(None), **options):
    options = {"s0": 3.0, "steps": 3} | options
    return sample(model, SEEDS[rows], guidance=guidance, prompts=PROMPTS[rows], **options)


class Remember(Chain):
    """Keeps what the guidances in it made of condition and noise, and ‖Δε‖ before and after."""

    def prepare(self, model, prompts, condition, x_T, seeds, start):
        self.before, self.after = (condition, x_T), super().prepare(model, prompts, condition, x_T, seeds, start)
        with torch.no_grad():
            self.losses = [
                (start.predict(x, c) - start.predict(x, start.null)).flatten(1).norm(dim=1)
                for c, x in (self.before, self.after)
            ]
        return self.after


# -- Han et al. ------------------------------------------------------------------------------------------------------


def test_noise_is_adjusted_as_worked_by_hand():
    # ε(x, c) = c x, so d(x) = (c − 0) x and d(x + ρ x/‖x‖) − d(x) = c ρ x/‖x‖: each iteration takes γ c ρ off ‖x‖
    x_T = torch.tensor([[3.0, 4.0], [0.0, 10.0]], dtype=torch.float64).view(2, 2, 1, 1)
    c = torch.tensor([1.0, 2.0], dtype=torch.float64).view(2, 1, 1, 1)
    start = Start(null=torch.zeros_like(c), predict=lambda x, condition: condition * x)
    condition, moved = InitialNoiseAdjustment(0.5, 0.2, 3).prepare(None, None, c, x_T, (0, 1), start)
    assert condition is c
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), torch.tensor([5 - 0.3, 10 - 0.6], dtype=torch.float64))
    torch.testing.assert_close(moved[0] / moved[0].norm(), x_T[0] / x_T[0].norm())


def test_equal_predictions_leave_the_noise_where_it_is():
    x_T, c = torch.randn(2, 3, 2, 2), torch.ones(2, 1, 1, 1)
    start = Start(null=c, predict=lambda x, condition: condition * x)
    assert torch.equal(InitialNoiseAdjustment().prepare(None, None, c, x_T, (0, 1), start)[1], x_T)


def test_without_steps_in_noise_or_time_it_is_plain_sampling_bit_by_bit():
    model = sd()
    assert torch.equal(drawn(model, InitialNoiseAdjustment(gamma=0, until=1)), drawn(model))
    assert torch.equal(drawn(model, InitialNoiseAdjustment(iterations=0, until=1)), drawn(model))
    held = drawn(model, InitialNoiseAdjustment(gamma=0, until=0.5))
    assert torch.equal(held, drawn(model, StaticTransitionPoint(0.5)))


def test_at_s0_1_there_is_no_null_prediction_and_nothing_is_done():
    model = sd()
    for guidance in (InitialNoiseAdjustment(), PromptEmbeddingOptimization(0.0)):
        assert torch.equal(drawn(model, guidance, s0=1.0), drawn(model, s0=1.0))


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_the_noise_does_not_depend_on_the_prediction_type(kind):
    def moved(kind):
        model = Toy(DDIMScheduler(prediction_type=kind, clip_sample=False), torch.float64, conditional=True)
        seen = Remember([InitialNoiseAdjustment(2.0)])
        sample(model, [1, 2], guidance=seen, prompts=["one", "two"], s0=3.0, steps=4)
        assert not torch.equal(seen.after[1], seen.before[1])
        return seen.after[1]

    torch.testing.assert_close(moved(kind), moved("epsilon"), rtol=0, atol=1e-8)


# -- Wen et al. ------------------------------------------------------------------------------------------------------


def linear(target):
    """One AdamW step on ε(x, e) = Σ_l w_l e_l, w = (1, 2, −3), two samples of three tokens of one channel."""
    e = torch.tensor([[5.0, 1.0, 1.0], [0.5, 0.3, 0.1]], dtype=torch.float64)[:, :, None]
    w = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)[:, None]
    start = Start(null=torch.zeros_like(e), predict=lambda x, condition: (condition * w).sum(1).view(-1, 1, 1, 1))
    guidance = PromptEmbeddingOptimization(target, iterations=1)
    return e, guidance.prepare(None, None, e, torch.zeros(2, 1, 1, 1, dtype=torch.float64), (0, 1), start)[0]


def test_one_step_of_adamw_worked_by_hand():
    # losses |5 + 2 − 3| = 4 and |0.5 + 0.6 − 0.3| = 0.8: only the first is above 1. Its first step decays e by
    # 1 − lr · decay = 0.9995 and moves it by lr = 0.05 against the sign of the gradient w; token 0 has none.
    e, moved = linear(1.0)
    assert moved[0].flatten().tolist() == pytest.approx([5 * 0.9995, 0.9995 - 0.05, 0.9995 + 0.05], abs=1e-6)
    assert torch.equal(moved[1], e[1])


def test_a_sample_at_its_target_is_left_alone_even_while_others_go_on():
    model = sd()
    seen = Remember([PromptEmbeddingOptimization(0.0, iterations=4)])
    drawn(model, seen)
    losses = seen.losses[0].sort().values
    target = losses[:2].mean().item()  # one of the four is below it from the start
    seen = Remember([PromptEmbeddingOptimization(target, iterations=4)])
    drawn(model, seen)
    below = seen.losses[0] <= target
    same = (seen.after[0] == seen.before[0]).flatten(1).all(1)
    assert below.sum() == 1 and torch.equal(same, below)
    assert (seen.losses[1][~below] < seen.losses[0][~below]).all()


@pytest.mark.parametrize("build", [stable_diffusion, sdxl], ids=["sd", "sdxl"])
def test_the_text_says_less_afterwards_in_the_sequence_of_tokens_alone(build):
    model = sd(build)
    seen = Remember([PromptEmbeddingOptimization(0.0)])
    drawn(model, seen, steps=1)
    assert (seen.losses[1] < 0.8 * seen.losses[0]).all()
    before, after = seen.before[0], seen.after[0]
    if build is sdxl:
        assert all(torch.equal(before[name], after[name]) for name in ("text_embeds", "time_ids"))
        before, after = before["encoder_hidden_states"], after["encoder_hidden_states"]
    torch.testing.assert_close(after[:, 0], before[:, 0] * 0.9995**10)


def test_v_and_eps_predictions_of_one_noise_agree():
    """Δε = √ᾱ Δv at equal x_t: the loss is in ε whatever the network predicts."""
    model, losses = sd(prediction_type="v_prediction"), []
    seen = Remember([PromptEmbeddingOptimization(float("inf"))])
    drawn(model, seen, steps=1, on_step=lambda step, _: losses.append(step.eps_cond - step.eps_uncond))
    torch.testing.assert_close(seen.losses[0], losses[0].flatten(1).norm(dim=1))


@pytest.mark.parametrize("options", [{"target": float("inf")}, {"iterations": 0}, {"target": 1e6}])
def test_no_step_is_plain_sampling_bit_by_bit(options):
    model = sd()
    assert torch.equal(drawn(model, PromptEmbeddingOptimization(**options)), drawn(model))


def test_it_starts_from_what_others_made_of_the_prompt_and_the_null():
    model = sd()
    chain = Remember([GaussianNoiseInput(0.3), PromptEmbeddingOptimization(float("inf"))])
    drawn(model, chain)
    alone = Remember([GaussianNoiseInput(0.3)])
    drawn(model, alone)
    assert torch.equal(chain.after[0], alone.after[0]) and torch.equal(chain.losses[1], alone.losses[1])


def test_half_precision_embeddings_are_optimized_in_single_precision_and_given_back_in_half():
    model = StableDiffusion(stable_diffusion(dtype=torch.bfloat16))
    seen = Remember([PromptEmbeddingOptimization(0.0, iterations=3)])
    assert drawn(model, seen, steps=1).isfinite().all()
    assert seen.after[0].dtype == torch.bfloat16 and not torch.equal(*(c for c, _ in (seen.before, seen.after)))


@pytest.mark.parametrize(
    "guidance", [PromptEmbeddingOptimization(0.01, iterations=4), InitialNoiseAdjustment(5.0)], ids=["wen", "han"]
)
def test_a_sample_depends_on_its_seed_alone(guidance):
    model = sd()
    four = drawn(model, guidance)
    ones = torch.cat([drawn(model, guidance, rows=slice(i, i + 1)) for i in range(4)])
    torch.testing.assert_close(ones, four, rtol=0, atol=1e-6)
    assert not torch.allclose(four, drawn(model), atol=1e-3)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: PromptEmbeddingOptimization(-1), "guidance.target must be >= 0, got -1"),
        (lambda: PromptEmbeddingOptimization(lr=float("nan")), "guidance.lr must be >= 0, got nan"),
        (lambda: InitialNoiseAdjustment(gamma=-1), "rho, gamma and iterations of han_batch must be >= 0"),
        (lambda: InitialNoiseAdjustment(until=900), r"guidance.until must lie in \[0, 1\], got 900"),
    ],
)
def test_bad_settings_name_their_key(build, said):
    with pytest.raises(ValueError, match=said):
        build()
