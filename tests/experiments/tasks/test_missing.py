"""A sampler that cannot serve and files that are not there are told before anything is drawn, all at once."""

import warnings

import pytest
from PIL import Image

from experiments.cli.main import compose_config
from experiments.config.bind import check
from experiments.config.build import find_files
from experiments.config.messages import as_notes
from experiments.config.schema import ConfigError

SMALL = ["n_samples=1", "sampler.steps=2", "metrics.extractor=none", "trainer=cpu", "output_dir=out"]


@pytest.mark.parametrize(
    "name, said",
    [
        ("Foo", "sampler.scheduler=Foo: must begin with amg., "),
        ("os.system", "sampler.scheduler=os.system: must begin with amg., "),
        ("diffusers.Foo", "sampler.scheduler: diffusers.Foo is not there, as diffusers.DDIMScheduler is"),
        ("diffusers.UNet2DModel", "sampler.scheduler: diffusers.UNet2DModel is no scheduler, as"),
        ("diffusers.HeunDiscreteScheduler", "sampler.scheduler: HeunDiscreteScheduler calls the network more than"),
        ("diffusers.EulerDiscreteScheduler", "sampler.scheduler: EulerDiscreteScheduler is not variance-preserving"),
    ],
)
def test_a_scheduler_that_cannot_serve_is_told_before_anything_is_drawn(command, tmp_path, name, said):
    code, _, told = command(*SMALL, f"sampler.scheduler={name}")
    assert code == 2 and told.startswith(f"error: {said}") and told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def lines_of(*keys):
    with pytest.raises(ConfigError) as error:
        find_files(check(compose_config(list(keys))))
    return error.value.lines


def test_network_and_pictures_of_cifar10_are_missed_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("amg.models.ddpm.reachable", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for model, way in (("iddpm_cifar10", "210 MB"), ("iddpm_cifar10_cond", "train_iddpm"), ("ddpm_cifar10", "143 MB")):
        network, pictures = lines_of(f"model={model}")
        assert network.startswith("model.path: ") and way in network
        assert pictures.startswith("data.path: data/cifar10 holds neither train*.parquet nor") and "170 MB" in pictures
    assert len(lines_of("model=iddpm_cifar10", "++data.download=true")) == 1
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    (tmp_path / "data" / "cifar10" / "train-0.parquet").touch()
    assert len(lines_of("model=iddpm_cifar10")) == 1
    assert lines_of("model=iddpm_cifar10", "++data.path=a.parquet")[1] == "data.path: there is no a.parquet"


def test_pictures_that_are_left_out_are_noted_in_a_line(command, tmp_path):
    (tmp_path / "train").mkdir()
    for i in range(60):
        Image.new("RGB", (32, 32), (4 * i, 0, 9)).save(tmp_path / "train" / f"{i}.png")
    (tmp_path / "train" / "broken.png").write_bytes(b"no picture")
    world = ["model=lab_sd", "conditioning=none", "data=folder", "data.path=train"]
    code, _, told = command(*SMALL, *world, "similarity=lab_guide", "data.cache=null")
    assert code == 0, told
    (line,) = [line for line in told.splitlines() if "left out" in line]
    assert line.startswith("note: train: 1 of 61 images cannot be read and are left out: broken.png")
    assert "warnings.warn" not in told and ".py:" not in told


def test_only_our_own_warnings_become_notes(capsys, recwarn):
    from experiments.config import messages as notes

    with as_notes():
        warnings.simplefilter("always", UserWarning)
        warnings.warn_explicit("two\nlines", UserWarning, f"{notes.ROOT}/amg/x.py", 1)
        warnings.warn_explicit("theirs", UserWarning, "/lib/y.py", 7)
        warnings.warn_explicit("`torch_dtype` is deprecated and will be removed", FutureWarning, "/lib/z.py", 1)
        warnings.warn_explicit("`torch.jit.load` is deprecated. Please", FutureWarning, "/lib/z.py", 2)
    told = capsys.readouterr().err
    assert told == "note: two lines\n"
    assert [str(one.message) for one in recwarn] == ["theirs"]
