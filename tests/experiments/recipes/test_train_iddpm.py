"""Recipe of the class-conditional iDDPM: its loss against closed forms, and a short training."""

from pathlib import Path

import pytest
import torch
from reference_iddpm import Spaced
from scipy.stats import norm

from amg import sample
from amg.models.ddpm import iddpm_cifar10_cond
from experiments.recipes.train_iddpm_cifar10_cond import Schedule, hybrid_loss, log_bin, main, variational_term

ROOT = Path(__file__).parents[3]
IMAGES = ROOT / "tests" / "data" / "cifar10_200.parquet"


def noised(t, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x_0 = (torch.randint(256, (len(t), 3, 4, 4), generator=generator) / 127.5 - 1).float()
    noise = torch.randn(x_0.shape, generator=generator)
    at_t = Schedule.cosine().at(t)
    return at_t, x_0, noise, at_t.alpha_bar.sqrt() * x_0 + (1 - at_t.alpha_bar).sqrt() * noise


def test_schedule_is_improved_diffusions():
    schedule, every = Schedule.cosine(), Spaced(steps=4000)
    for table, expected in ((schedule.alpha_bar, every.alpha_bar), (schedule.log_tilde, every.log_low)):
        torch.testing.assert_close(table, torch.from_numpy(expected), rtol=1e-6, atol=0)


def test_a_perfect_network_has_no_divergence():
    # the true noise and the smallest variance are the true posterior
    t = torch.tensor([1, 500, 3000])
    at_t, x_0, noise, x_t = noised(t)
    value = variational_term(at_t, noise, torch.full_like(noise, -1.0), x_0, x_t, t)
    torch.testing.assert_close(value, torch.zeros(3), rtol=0, atol=1e-3)


def test_divergence_of_a_wrong_variance_is_that_of_two_gaussians():
    # means agree, variances are β̃ and β: KL = (β̃/β − 1 − log(β̃/β)) / 2, in bits
    t = torch.tensor([1, 40])
    at_t, x_0, noise, x_t = noised(t)
    ratio = (at_t.log_tilde - at_t.beta.log()).flatten()
    expected = 0.5 * (ratio.exp() - 1 - ratio) / torch.tensor(2.0).log()
    value = variational_term(at_t, noise, torch.ones_like(noise), x_0, x_t, t)
    torch.testing.assert_close(value, expected, rtol=1e-2, atol=1e-4)
    assert value[0] > 0.01


def test_last_step_counts_the_bins_of_8_bit_values():
    x = torch.tensor([-1.0, -1 + 2 / 255, 0.5 / 127.5 * 2 - 1, 0.0, 1.0])
    mean, deviation = torch.tensor([-0.99, -0.9, -1.0, 0.01, 0.98]), 0.02
    expected = [
        norm.cdf((-1 + 1 / 255 + 0.99) / deviation),
        *(
            norm.cdf((v + 1 / 255 - m) / deviation) - norm.cdf((v - 1 / 255 - m) / deviation)
            for v, m in zip(x[1:4], mean[1:4], strict=True)
        ),
        1 - norm.cdf((1 - 1 / 255 - 0.98) / deviation),
    ]
    actual = log_bin(x, mean, torch.full_like(x, deviation**2).log()).exp()
    torch.testing.assert_close(actual, torch.tensor(expected).float(), rtol=1e-3, atol=1e-6)


def test_variance_channels_alone_learn_from_the_variational_term():
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.eps, self.channels = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))

        def forward(self, x_t, timestep, class_labels):
            self.timestep = timestep
            return type("Output", (), {"sample": torch.cat([self.eps + 0 * x_t, self.channels + 0 * x_t], 1)})

    network, t = Network(), torch.tensor([4, 8])
    _, x_0, noise, _ = noised(t)
    loss = hybrid_loss(network, Schedule.cosine(), x_0, torch.tensor([1, 2]), t, noise).mean()
    slope_eps, slope_channels = torch.autograd.grad(loss, (network.eps, network.channels))
    torch.testing.assert_close(slope_eps, (-2 * noise).mean().view(1))  # that of the plain square error
    assert slope_channels.abs() > 1e-4
    assert network.timestep.tolist() == [1, 2]  # t · 1000 / 4000


@pytest.mark.slow
def test_a_killed_training_continues_as_if_uninterrupted_and_its_folder_is_the_model(tmp_path, capsys):
    options = ["--data", str(IMAGES), "--width", "32", "--batch", "2", "--device", "cpu"]
    main([*options, "--out", str(tmp_path / "whole"), "--steps", "3"])
    main([*options, "--out", str(tmp_path / "cut"), "--steps", "1"])
    main([*options, "--out", str(tmp_path / "cut"), "--steps", "3"])
    whole, cut = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "cut"))
    torch.testing.assert_close(cut["ema"], whole["ema"], rtol=0, atol=1e-7)
    torch.testing.assert_close(cut["model"], whole["model"], rtol=0, atol=1e-7)
    assert "'steps': 3" in capsys.readouterr().out
    model = iddpm_cifar10_cond(tmp_path / "cut")
    assert model.labels == 10 and model.timestep_scale == 0.25
    assert sample(model, [1, 2], prompts=[0, 9], steps=2).isfinite().all()


def test_missing_data_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--data", str(tmp_path / "none"), "--out", str(tmp_path)])
    error = capsys.readouterr().err
    assert error.startswith("error: data.path") and error.count("\n") == 1
