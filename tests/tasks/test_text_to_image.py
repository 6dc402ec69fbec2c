"""Text to image: noise as diffusers' schedulers add it, latents as its VAEs draw them, fixed validation noise."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from deltatune import DeltatuneError
from deltatune.data import read
from deltatune.models.conditioning import CALLS, TEXTS
from deltatune.models.pipelines import ImagePipeline
from deltatune.tasks.diffusion.noise import noise_schedule
from deltatune.tasks.diffusion.text_to_image import VALIDATION_TIMES, TextToImage
from deltatune.tasks.task_registry import task_from_json
from support.pictures import write_pictures

pytest.importorskip("diffusers")

from support.diffusion import stable_diffusion, stable_diffusion_3


def opened(pipe, prediction="epsilon"):
    name = type(pipe).__name__
    return ImagePipeline(pipe, TEXTS[name], CALLS[name], prediction)


@pytest.fixture(scope="module")
def pipeline():
    return opened(stable_diffusion())


@pytest.fixture
def rows(tmp_path):
    return read(write_pictures(tmp_path / "pictures"), task="image").train


TASK = TextToImage(resolution=8)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_noise_and_targets_are_those_of_diffusers_scheduler(pipeline, prediction):
    scheduler = pipeline.pipe.scheduler
    schedule = noise_schedule(ImagePipeline(pipeline.pipe, pipeline.texts, pipeline.call, prediction))
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(6, 4, 8, 8, generator=generator) for _ in range(2))
    got = schedule.noisy(clean, noise, torch.tensor([0.0, 0.1, 0.25, 0.5, 0.75, 0.9999]))
    assert got.times.tolist() == [0, 100, 250, 500, 750, 999]
    torch.testing.assert_close(got.noisy, scheduler.add_noise(clean, noise, got.times))
    want = {"epsilon": noise, "sample": clean, "v_prediction": scheduler.get_velocity(clean, noise, got.times)}
    torch.testing.assert_close(got.target, want[prediction])
    assert got.weights.tolist() == [1.0] * 6
    # min-SNR: in terms of the error of the clean latents every kind has the weight min(SNR, gamma)
    power = scheduler.alphas_cumprod[got.times]
    snr = power / (1 - power)
    least = torch.minimum(snr, torch.tensor(5.0))
    factors = {"epsilon": least / snr, "v_prediction": least / (snr + 1), "sample": least}
    weights = schedule.noisy(clean, noise, torch.tensor([0.0, 0.1, 0.25, 0.5, 0.75, 0.9999]), 5.0).weights
    torch.testing.assert_close(weights, factors[prediction], rtol=1e-4, atol=1e-6)


def test_a_flow_is_a_straight_line_with_shifted_logit_normal_times():
    pipe = stable_diffusion_3()
    pipe.scheduler.register_to_config(shift=3.0)
    schedule = noise_schedule(opened(pipe, "flow"))
    clean, noise = torch.zeros(3, 4, 2, 2), torch.ones(3, 4, 2, 2)
    got = schedule.noisy(clean, noise, torch.tensor([0.5, 0.1, 0.9]))
    sigma = got.times / 1000
    assert sigma[0] == pytest.approx(0.75)  # the median, 0.5, shifted by 3
    assert sigma[1] < sigma[0] < sigma[2]
    torch.testing.assert_close(got.noisy, sigma.view(3, 1, 1, 1).expand(3, 4, 2, 2).contiguous())
    torch.testing.assert_close(got.target, noise - clean)


def test_latents_are_the_vaes_and_drawn_anew_in_every_epoch(pipeline, rows):
    encoded = TASK.encode(rows, pipeline)
    pixels = torch.from_numpy(np.array(Image.open(rows[0]["image"]).crop((2, 0, 10, 8)))).permute(2, 0, 1) / 127.5 - 1
    posterior = pipeline.pipe.vae.encode(pixels[None]).latent_dist
    torch.testing.assert_close(encoded.moments[0][0], posterior.parameters[0].detach(), rtol=1e-4, atol=1e-5)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    want = (posterior.mean + posterior.std * noise) * pipeline.pipe.vae.config.scaling_factor
    torch.testing.assert_close(pipeline.latents(encoded.moments[0][0][None], noise), want.detach())
    first, again, next_epoch = (encoded.batch([0, 1], 0, epoch, None) for epoch in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["noisy"], next_epoch["noisy"])
    alone = encoded.batch([1], 0, 0, None)
    assert torch.equal(alone["noisy"][0], first["noisy"][1])  # a row draws the same in any batch
    assert TASK.items(first["labels"]) == 2


def test_flip_encodes_the_mirror_image_and_crop_none_the_whole(pipeline, tmp_path):
    half = np.zeros((8, 16, 3), np.uint8)
    half[:, :8] = 255
    Image.fromarray(half).save(tmp_path / "a.png")
    row = {"image": str(tmp_path / "a.png"), "text": "a wall"}
    plain, flipped = (
        TextToImage(resolution=8, crop="none", flip=flip).encode([row], pipeline) for flip in (False, True)
    )
    assert (len(plain.moments[0]), len(flipped.moments[0])) == (1, 2)
    assert torch.equal(plain.moments[0][0], flipped.moments[0][0])
    assert not torch.equal(flipped.moments[0][0], flipped.moments[0][1])
    values, sizes = TextToImage(resolution=8, crop="none")._square(row)
    assert values[:, :, 0].min() > 0.9
    assert values[:, :, -1].max() < -0.9
    _, cut = TextToImage(resolution=8)._square(row)
    assert sizes.tolist() == [8, 16, 0, 0, 8, 8]
    assert cut.tolist() == [8, 16, 0, 4, 8, 8]


def test_validation_noise_depends_on_the_picture_alone(pipeline, rows):
    encoded, backwards = TASK.encode(rows, pipeline), TASK.encode(rows[::-1], pipeline)
    one, same = encoded.fixed_batch(1), backwards.fixed_batch(2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert len(one["times"]) == VALIDATION_TIMES
    assert [int(time) // 250 for time in one["times"]] == [0, 1, 2, 3]
    other = encoded.fixed_batch(2)
    assert not torch.equal(one["labels"], other["labels"])


def test_the_task_is_stored_and_scores_the_mean(pipeline):
    task = TextToImage(resolution=8, flip=True, min_snr=5.0, sample_prompts=("a wall",))
    assert task_from_json(task.to_json()) == task
    assert task.score([0.5, 1.5], ()) == {"loss": 1.0}
    predicted, target = torch.ones(2, 4, 2, 2), torch.zeros(2, 4, 2, 2)
    assert float(task.loss(predicted, target)) == 2.0  # mean over latents, summed over rows


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"resolution": 4}, "resolution must be at least 8"),
        ({"min_snr": 0.0}, "min_snr must be above 0"),
        ({"sample_prompts": ("a",) * 5}, "sample_prompts has 5 prompts, and samples is 4"),
        ({"crop": "middle"}, "crop must be"),
        ({"metric": "fid"}, "'fid' is not a metric"),
        ({"samples": -1}, "samples must not be negative"),
    ],
)
def test_fields_that_cannot_be(fields, words):
    with pytest.raises(DeltatuneError, match=words):
        TextToImage(**fields)


def test_pictures_that_cannot_be_used_are_named_together(pipeline, rows, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    Image.new("RGB", (7, 40)).save(tmp_path / "small.png")
    bad = [{**rows[0], "image": str(tmp_path / name)} for name in ("broken.png", "small.png", "absent.png")]
    with pytest.raises(DeltatuneError) as error:
        TASK.encode([*rows, *bad], pipeline)
    assert "broken.png" in str(error.value)
    assert "small.png has 7 x 40 pixels, fewer than --resolution 8" in str(error.value)
    assert "absent.png" in str(error.value)
    with pytest.raises(DeltatuneError, match="resolution 9: this model takes multiples of 2, such as 8"):
        TextToImage(resolution=9).encode(rows, pipeline)


def test_no_two_pictures_are_in_memory_at_once(pipeline, rows, monkeypatch):
    alive, most, square = [], [], TextToImage._square

    def counted(self, row):
        pixels, sizes = square(self, row)
        alive.append(weakref.ref(pixels))
        most.append(sum(pixels() is not None for pixels in alive))
        return pixels, sizes

    monkeypatch.setattr(TextToImage, "_square", counted)
    assert len(TASK.encode(rows, pipeline)) == len(rows) > 2
    assert max(most) <= 2


def test_a_flow_has_no_min_snr(rows):
    pipeline = opened(stable_diffusion_3(), "flow")
    with pytest.raises(DeltatuneError, match="min_snr=5: this model predicts a flow, whose times all weigh the same"):
        TextToImage(resolution=8, min_snr=5.0).encode(rows, pipeline)
