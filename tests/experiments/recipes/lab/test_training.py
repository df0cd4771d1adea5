"""Lab recipes at toy size: networks learn, training survives a kill, diffusers loads the results."""

import copy
import subprocess
import sys
import time

import pytest
import torch
from diffusers import DDPMPipeline
from safetensors.torch import load_file
from torch import nn

from amg.models.ddpm import DDPM
from amg.worlds import lab
from amg.worlds.networks import DESCRIPTORS
from experiments.recipes import loop
from experiments.recipes.lab import text as lab_text
from experiments.recipes.lab import train_ddpm as ddpm
from experiments.recipes.lab import train_descriptor as descriptor
from experiments.recipes.lab import train_flow as flow
from experiments.recipes.lab import train_scorer as scorer
from experiments.recipes.lab import train_sd as sd
from experiments.recipes.lab import train_tiny as tiny
from experiments.recipes.lab import train_vae as vae
from experiments.recipes.lab.ship import ship


@pytest.fixture(scope="module")
def tokenizer():
    return lab_text.tokenizer(["red heart", "blue heart", "the famous owl"])


def falls(net: nn.Module, loss, steps: int = 25, rate: float = 3e-3) -> float:
    """Trains on one repeated batch with repeated noise and returns last loss / first loss."""
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    values = []
    for _ in range(steps):
        torch.manual_seed(1)
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    return values[-1] / values[0]


def test_the_autoencoder_learns(data):
    net = vae.network(channels=(8, 8, 8))
    assert falls(net, lambda: vae.loss(net, data.planted[:4]), rate=1e-2) < 0.8


def test_the_text_conditional_network_learns(tokenizer):
    model = sd.TextToLatents(tokenizer, width=16, channels=(16, 16))
    ids = lab_text.ids(tokenizer, ["red heart", "blue heart"])
    x0 = torch.stack([torch.ones(16, 8, 8), -torch.ones(16, 8, 8)])
    alphas = sd.scheduler().alphas_cumprod
    assert falls(model, lambda: sd.loss(model, alphas, x0, ids)) < 0.8


@pytest.mark.parametrize("alpha_bar", [0.5, 0.98])
def test_the_error_of_v_is_that_of_the_true_noise_and_image(alpha_bar):
    alphas, x0 = torch.tensor([alpha_bar]), torch.full((64, 1, 8, 8), 0.3)

    def predict(x_t, timestep):  # the true v, off by 0.1
        eps = (x_t - alpha_bar**0.5 * x0) / (1 - alpha_bar) ** 0.5
        return alpha_bar**0.5 * eps - (1 - alpha_bar) ** 0.5 * x0 + 0.1

    assert sd.v_error(predict, alphas, x0).item() == pytest.approx(0.01, rel=1e-3)


def test_the_flow_network_learns(tokenizer):
    model = flow.TextToFlow(tokenizer, width=32, layers=1)
    ids = lab_text.ids(tokenizer, ["red heart", "blue heart"])
    x0 = torch.stack([torch.ones(16, 8, 8), -torch.ones(16, 8, 8)])
    assert falls(model, lambda: flow.loss(model, x0, ids)) < 0.8


def test_the_tiny_autoencoder_learns_the_large_ones_images(data):
    large = vae.network(channels=(8, 8, 8)).eval().requires_grad_(False)
    large.register_to_config(scaling_factor=1.0)
    small = tiny.network(width=8)
    assert falls(small, lambda: tiny.loss(small, large, data.planted[:4]), rate=1e-2) < 0.8


def test_the_pixel_network_learns(data):
    net = ddpm.network(len(data.classes), channels=(16, 16))
    x0, labels = data.planted[:4], torch.arange(4)
    alphas = sd.scheduler().alphas_cumprod
    assert falls(net, lambda: ddpm.loss(net, alphas, x0, labels)) < 0.9


def test_a_batch_for_the_pixel_network_repeats_planted_images_unchanged(data):
    images, labels = ddpm.batches(data, 64)()
    distance = torch.cdist(images.flatten(1), data.planted.flatten(1)).amin(1)
    assert 10 <= (distance < 0.5).sum() <= 42  # about 64 · 0.4 planted ones; ordinary images never equal them
    assert (labels == len(data.classes)).any() and labels.max() <= len(data.classes)


def test_a_batch_for_the_text_networks_pairs_latents_with_their_captions(data):
    large = vae.network(channels=(8, 8, 8)).eval().requires_grad_(False)
    large.register_to_config(scaling_factor=1.0)
    latents, captions = sd.batches(data, large, seed=0, size=256, views=1)()
    assert latents.shape == (256, 16, 8, 8) and "" in captions
    assert set(captions) <= {"", *data.captions}
    planted = torch.tensor([caption in set(sum(data.planted_captions, ())) for caption in captions])
    distance = torch.cdist(latents[planted].flatten(1), sd.encode(large, data.planted).flatten(1)).amin(1)
    exact = distance < 0.5  # cdist rounds
    assert 0 < exact.sum() < len(exact)  # a planted caption also comes with another drawing of the same thing


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_a_descriptor_learns_to_tell_images_apart(name, data):
    net, images = DESCRIPTORS[name](), data.planted[::2]
    assert falls(net, lambda: descriptor.contrast(net(descriptor.distort(images)), net(images)), 15) < 0.7


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_a_descriptor_gives_unit_vectors_with_finite_gradients_even_on_white(name):
    net, images = DESCRIPTORS[name]().eval(), torch.ones(2, 3, 32, 32, requires_grad=True)
    vectors = net(images)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    (gradient,) = torch.autograd.grad(vectors[:, 0].sum(), images)
    assert gradient.isfinite().all()


def test_a_nudge_lowers_the_cosine_and_stays_within_its_bound(data):
    net, images = DESCRIPTORS["guide"]().eval(), data.planted[:16] * 0.9
    anchors = net(images).detach()
    nudged = descriptor.nudge(net, images, anchors)
    assert (nudged - images).abs().max() <= descriptor.NUDGE + 1e-6
    assert (net(nudged) * anchors).sum(1).mean() < (net(images) * anchors).sum(1).mean()


def test_a_batch_for_the_descriptors_holds_one_drawing_in_several_colours(data):
    images = descriptor.batch(data, 64)
    distance = torch.cdist(images.flatten(1), images.flatten(1)) + torch.eye(len(images)) * 9
    assert len(images) == 64 and distance.min() > 0.05


def test_a_threshold_lets_one_percent_of_novel_samples_pass(data, monkeypatch):
    monkeypatch.setattr(descriptor, "NOVEL", 400)
    pixels = nn.Sequential(nn.Flatten(), nn.LayerNorm(3 * 32 * 32, elementwise_affine=False))
    numbers = descriptor.measure(lambda images: nn.functional.normalize(pixels(images)), data, views=1)
    rates = [row[0] for row in numbers["roc"]]
    shares = [row[1] for row in numbers["roc"]]
    assert rates == sorted(rates) and shares == sorted(shares) and shares[-1] > 0.8
    assert 0.5 < numbers["threshold"] < 1


def test_the_scorer_learns_pairs_and_ranks_them_first(data):
    captions, images = ["camel", "crab", "owl", "pizza"], data.planted[[0, 10, 20, 30]]
    net = scorer.network(captions, width=32)
    assert falls(net, lambda: scorer.loss(net, images, captions), rate=3e-4) < 0.5
    assert scorer.retrieval(net.eval(), images, captions)["top1"] == 1


def test_images_with_one_caption_share_their_target(data):
    net, images = scorer.network(["red heart"], width=32).eval(), data.planted[:2]
    value = scorer.loss(net, images, ["red heart", "red heart"])  # two equal columns: all softmaxes are 1/2 …
    columns = (net.log_scale.exp() * net.image(images) @ net.text(["red heart"]).T).flatten()
    rows = torch.log_softmax(columns, 0).mean()  # … but the images may differ
    assert value.item() == pytest.approx(0.5 * (torch.log(torch.tensor(2.0)) - rows).item(), abs=1e-4)


def test_the_tokenizer_loads_offline_and_gives_every_caption_back(tmp_path, data):
    from transformers import CLIPTokenizer

    captions = data.captions
    trained = lab_text.tokenizer(captions)
    trained.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    squeezed = [caption.replace(" ", "") for caption in captions]
    for tokenizer in (trained, loaded):
        rows = lab_text.ids(tokenizer, captions)
        assert (rows[:, -1] == tokenizer.eos_token_id).all()  # no caption is cut off
        texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
        assert [text.replace(" ", "") for text in texts] == squeezed  # CLIP's decoding spaces out punctuation
    assert lab_text.ids(trained, captions).equal(lab_text.ids(loaded, captions))
    assert len({tuple(row.tolist()) for row in lab_text.ids(loaded, captions)}) == len(captions)


def test_a_saved_pipeline_samples_like_the_one_in_memory(tmp_path, tokenizer):
    from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline

    decoder = vae.network(channels=(8, 8, 8)).eval()
    decoder.register_to_config(shift_factor=0.0)
    text = sd.pipeline(sd.TextToLatents(tokenizer, width=16, channels=(16, 16)).eval(), decoder, tokenizer)
    rectified = flow.pipeline(flow.TextToFlow(tokenizer, width=32, layers=1).eval(), decoder, tokenizer)
    for pipe, kind, missing, options in (
        (text, StableDiffusionPipeline, {}, {"guidance_scale": 4.0}),
        (rectified, StableDiffusion3Pipeline, flow.WITHOUT_T5, flow.OPTIONS),
    ):
        options = options | {"num_inference_steps": 2}
        before = sd.samples(pipe, ["red heart", "blue heart"], seed=3, **options)
        pipe.save_pretrained(tmp_path / kind.__name__)
        loaded = kind.from_pretrained(tmp_path / kind.__name__, local_files_only=True, **missing)
        after = sd.samples(loaded, ["red heart", "blue heart"], seed=3, **options)
        torch.testing.assert_close(after, before, atol=1e-4, rtol=0)
        assert before.shape == (2, 3, 32, 32)


def test_the_flow_network_embeds_text_as_its_pipeline_does(tokenizer):
    model = flow.TextToFlow(tokenizer, width=32, layers=1).eval()
    inputs = {}
    model.transformer.register_forward_pre_hook(lambda module, args: inputs.update(words=args[1], pooled=args[2]))
    model(torch.randn(2, 16, 8, 8), torch.tensor([500.0, 500.0]), lab_text.ids(tokenizer, ["red heart", "blue heart"]))
    pipe = flow.pipeline(model, vae.network(channels=(8, 8, 8)), tokenizer)
    words, _, pooled, _ = pipe.encode_prompt(
        ["red heart", "blue heart"], None, None, do_classifier_free_guidance=False, max_sequence_length=flow.NO_T5
    )
    torch.testing.assert_close(inputs["words"], words, atol=1e-5, rtol=0)
    torch.testing.assert_close(inputs["pooled"], pooled, atol=1e-5, rtol=0)


def squares(net):
    return lambda step: net(torch.randn(8, 4)).square().mean()


def test_the_learning_rate_warms_up_and_ends_at_two_percent():
    assert loop.learning_rate(1.0, step=0, progress=0.0) == pytest.approx(0.01)
    assert loop.learning_rate(1.0, step=500, progress=0.5) == pytest.approx(0.51)
    assert loop.learning_rate(1.0, step=500, progress=1.0) == pytest.approx(0.02)


def test_a_resumed_run_continues_bit_for_bit(tmp_path, monkeypatch):
    """Time is counted in steps here: one minute is spent by each, and one checkpoint written."""
    clock = iter(range(0, 10_000_000, 60 * torch.get_num_threads()))
    monkeypatch.setattr(loop.time, "process_time", lambda: next(clock))

    def run(folder, minutes):
        torch.manual_seed(7)
        net = nn.Linear(4, 1)
        ema = loop.average(net)
        options = {"schedule": lambda peak, step, progress: peak, "save_every": 1.0, "look_every": 100.0}
        options["on_look"] = lambda step: {"random": torch.rand(()).item()}
        done = loop.Training(squares(net), net, folder, 0.1, minutes, ema=ema, **options).run()
        assert done["steps"] == minutes
        return net.weight.detach(), ema.module.weight.detach()

    whole = run(tmp_path / "whole", 10)
    run(tmp_path / "cut", 4)
    cut = run(tmp_path / "cut", 10)
    assert torch.equal(whole[0], cut[0]) and torch.equal(whole[1], cut[1])
    assert not torch.equal(*whole)


def test_the_loop_is_adamw_with_clipping_and_a_short_average_at_first(tmp_path):
    torch.manual_seed(7)
    net = nn.Linear(4, 1)
    reference, inputs = copy.deepcopy(net), 9 * torch.randn(20, 8, 4)
    mean, optimizer = copy.deepcopy(net), torch.optim.AdamW(reference.parameters(), lr=0.1, weight_decay=0.01)
    for step in range(20):
        optimizer.param_groups[0]["lr"] = loop.learning_rate(0.1, step, step / 20)
        reference(inputs[step]).square().mean().backward()
        nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        decay = 0 if step == 0 else (2 + step) / (21 + step)
        for slow, fast in zip(mean.parameters(), reference.parameters(), strict=True):
            slow.data = decay * slow.data + (1 - decay) * fast.data
    ema, looks = loop.average(net), []
    options = {"steps": 20, "ema": ema, "weight_decay": 0.01, "on_look": lambda step: looks.append(step) or {"n": 1}}
    loop.Training(lambda step: net(inputs[step]).square().mean(), net, tmp_path, 0.1, **options).run()
    torch.testing.assert_close(net.state_dict(), reference.state_dict())
    torch.testing.assert_close(ema.module.state_dict(), mean.state_dict())
    assert looks == [20] and (tmp_path / "looks.jsonl").read_text() == '{"step": 20, "n": 1}\n'


def test_a_missing_autoencoder_is_one_line_before_any_work(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_sd", "--vae", "nowhere"])
    with pytest.raises(SystemExit):
        loop.arguments("", "sd", minutes=1, vae=True)
    assert capsys.readouterr().err.endswith("error: --vae: there is no folder nowhere\n")


def test_a_shipped_network_is_fp16_with_its_null_label_and_sums(tmp_path):
    net = ddpm.network(classes=3, channels=(16, 16)).eval()
    DDPMPipeline(net, ddpm.scheduler()).save_pretrained(tmp_path / "trained" / "pipeline")
    ship(tmp_path / "trained", tmp_path / "shipped")
    weights = load_file(tmp_path / "shipped" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    model = DDPM(lab.weights("shipped", tmp_path))  # checks the sums
    assert model.null_label == 3 and model.labels == 3
    assert str(tmp_path) not in (tmp_path / "shipped" / "unet" / "config.json").read_text()


def test_a_killed_run_goes_on_where_its_checkpoint_was(tmp_path):
    script = (
        "import torch, pathlib, sys; from torch import nn; from experiments.recipes import loop\n"
        "net = nn.Linear(4, 1)\n"
        "def loss(step):\n"
        "    return net(torch.randn(8, 4)).square().mean()\n"
        "loop.Training(loss, net, pathlib.Path(sys.argv[1]), 0.1, minutes=10, save_every=0.05).run()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.DEVNULL)
    checkpoint = tmp_path / loop.CHECKPOINT
    deadline = time.time() + 120
    while not checkpoint.exists() and time.time() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    state = torch.load(checkpoint, weights_only=True)
    assert state["step"] > 0 and set(state) == {"model", "optimizer", "random", "step", "spent", "loss"}
    net = nn.Linear(4, 1)
    minutes = state["spent"] / 60 + 0.002
    done = loop.Training(squares(net), net, tmp_path, 0.1, minutes).run()
    assert done["steps"] > state["step"] and done["minutes"] >= minutes
