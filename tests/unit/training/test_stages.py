"""The table of stages, against names, losses and gradients recorded from the release."""

import pytest
import torch

from tests import tiny
from tests.tiny import recorded, relative_error
from vexpress.diffusion.losses import min_snr_weights, weighted_loss
from vexpress.diffusion.schedule import build_scheduler
from vexpress.models import Conditions
from vexpress.training.config import ModuleTrainingConfig
from vexpress.training.stages import STAGES, Selection, TrainingNetworks, count_parameters, select, set_trainable

NETWORKS = ("reference_net", "denoising_unet", "v_kps_guider", "audio_projection")


def build() -> TrainingNetworks:
    return TrainingNetworks(**{name: getattr(tiny, name)() for name in NETWORKS})


def without_gradient(network: str, name: str) -> bool:
    """Listed by the release as trained, though its gradient is zero, or there is none."""
    return network == "reference_net" and (name.startswith("conv_out.") or (".attn2." in name and "weight" in name))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_names_of_trained_parameters_are_the_recorded_ones(number):
    case, networks = recorded(f"training_stage_{number}"), build()
    set_trainable(networks, f"stage_{number}")
    for name in NETWORKS:
        network = getattr(networks, name)
        trained = {key for key, parameter in network.named_parameters() if parameter.requires_grad}
        expected = {key for key in case[f"{name}_trainable"].tolist() if not without_gradient(name, key)}
        assert trained == expected, name
        assert network.training == bool(expected)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_target_weights_loss_and_gradient_norms_are_the_recorded_ones(number):
    case, networks = recorded(f"training_stage_{number}"), build()
    set_trainable(networks, f"stage_{number}")
    inputs = {name: torch.from_numpy(value) for name, value in case.items() if value.ndim and value.dtype.kind in "fi"}
    scheduler, timesteps = build_scheduler("ddim"), inputs["timesteps"]
    target = scheduler.get_velocity(inputs["latents"], inputs["noise"], timesteps)
    assert relative_error(target, inputs["target"]) < 1e-6
    weights = min_snr_weights(scheduler.alphas_cumprod, timesteps, float(case["snr_gamma"]))
    assert relative_error(weights, inputs["min_snr_weights"]) < 1e-5
    prediction = networks(
        scheduler.add_noise(inputs["latents"], inputs["noise"], timesteps),
        timesteps,
        inputs["reference_latents"],
        inputs["kps_images"].float(),
        inputs["audio_windows"],
    )
    assert relative_error(prediction.detach(), inputs["prediction"]) < 1e-4
    loss = weighted_loss(prediction, target, weights, inputs["lip_masks"], float(case["lip_loss_weight"]))
    assert float(loss.detach()) == pytest.approx(float(case["loss"]), rel=1e-4)
    loss.backward()
    for name in NETWORKS:
        gradients = [p.grad for p in getattr(networks, name).parameters() if p.grad is not None]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm() if gradients else torch.zeros(())
        assert float(norm) == pytest.approx(float(case[f"{name}_grad_norm"]), rel=2e-3, abs=1e-12), name


@pytest.mark.parametrize("stage", STAGES)
def test_every_trained_parameter_gets_a_gradient_even_if_all_is_dropped(stage):
    """Or data-parallel training would wait for it forever."""
    networks = build()
    set_trainable(networks, stage)
    nothing = torch.zeros(1, 2)
    prediction = networks(
        torch.randn(1, 4, 2, 8, 8),
        torch.tensor([500]),
        torch.randn(1, 4, 8, 8),
        torch.rand(1, 3, 2, 64, 64),
        torch.randn(1, 2, 10, 24),
        reference_keep=nothing,
        kps_keep=nothing,
        audio_keep=nothing,
    )
    prediction.square().mean().backward()
    for name, parameter in networks.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_dropping_everything_is_the_unconditional_form():
    networks, nothing = build(), torch.zeros(2, 3)
    latents, timesteps = torch.randn(2, 4, 3, 8, 8), torch.tensor([3, 900])
    with torch.no_grad():
        dropped = networks(
            latents,
            timesteps,
            torch.randn(2, 4, 8, 8),
            torch.rand(2, 3, 3, 64, 64),
            torch.randn(2, 3, 10, 24),
            reference_keep=nothing,
            kps_keep=nothing,
            audio_keep=nothing,
        )
        assert relative_error(dropped, networks.denoising_unet(latents, timesteps, Conditions())) < 1e-5


def test_switches_override_the_table():
    networks = build()
    set_trainable(networks, "stage_3", ModuleTrainingConfig(reference_net=False, audio_projection=True))
    counts = count_parameters(networks)
    assert counts["reference_net"][0] == 0
    assert counts["audio_projection"][0] == counts["audio_projection"][1]


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match="attn3 matches no parameter"):
        select(["attn2.to_q"], Selection((".*",), ("attn3",)))


def test_min_snr_weights_at_both_ends():
    alphas = build_scheduler("ddim").alphas_cumprod
    weights = min_snr_weights(alphas, torch.tensor([0, 999]), 5.0)
    assert weights[1] == 1  # where the SNR is zero
    assert 0 < weights[0] < 0.01
    assert torch.isfinite(weights).all()


def test_mouth_weight_weighs_the_mouth():
    prediction, target = torch.zeros(1, 1, 1, 2, 2), torch.ones(1, 1, 1, 2, 2)
    mask = torch.tensor([1.0, 0, 0, 0]).reshape(1, 1, 1, 2, 2)
    assert weighted_loss(prediction, target, torch.ones(1), mask, 1.0) == 1
    assert weighted_loss(prediction, target, torch.ones(1), mask, 101.0) == 26


def test_motion_weight_weighs_what_changes_from_frame_to_frame():
    target, mask = torch.zeros(1, 1, 3, 1, 1), torch.zeros(1, 1, 3, 1, 1)
    steady, jumping = target + 2, torch.tensor([0.0, 2, 0]).reshape(target.shape)
    single = steady[:, :, :1], target[:, :, :1], torch.ones(1), mask[:, :, :1]
    assert weighted_loss(steady, target, torch.ones(1), mask, 1.0, 3.0) == 4  # the same error in all frames
    assert weighted_loss(*single, 1.0, 3.0) == 4  # one frame has no neighbour
    assert weighted_loss(jumping, target, torch.ones(1), mask, 1.0, 3.0) == pytest.approx(4 / 3 + 3 * 4)
    mouth = mask.index_fill(2, torch.tensor([1]), 1.0)  # counts in the frame and in the step that leads to it
    assert weighted_loss(jumping, target, torch.ones(1), mouth, 10.0, 3.0) == pytest.approx(40 / 3 + 3 * (40 + 4) / 2)
    assert weighted_loss(jumping, target, torch.tensor([0.5]), mask, 1.0, 3.0) == pytest.approx(2 / 3 + 3 * 2)


def test_attributes_are_in_every_steps_graph_and_dropped_with_all_else():
    networks, nothing = build(), torch.zeros(1, 2)
    networks.attribute_projection = tiny.attribute_projection()
    set_trainable(networks, "stage_2")
    latents, timesteps = torch.randn(1, 4, 2, 8, 8), torch.tensor([500])
    inputs = (torch.randn(1, 4, 8, 8), torch.rand(1, 3, 2, 64, 64))

    def predict(audio_seed: int, attributes: torch.Tensor, **keep: torch.Tensor) -> torch.Tensor:
        audio = torch.randn(1, 2, 10, 24, generator=torch.Generator().manual_seed(audio_seed))
        return networks(latents, timesteps, *inputs, audio, attributes=attributes, **keep)

    one, other = torch.rand(1, 2, 6), torch.full((1, 2, 6), torch.nan)
    alone = {"audio_keep": nothing, "attribute_keep": torch.ones(1, 2, 6), "any_keep": torch.ones(1, 2)}
    assert torch.equal(predict(0, one, **alone), predict(1, one, **alone))  # audio alone is dropped
    assert not torch.equal(predict(0, one, **alone), predict(0, other, **alone))
    unknown = {"audio_keep": nothing + 1, "attribute_keep": torch.zeros(1, 2, 6), "any_keep": nothing + 1}
    assert torch.equal(predict(0, one, **unknown), predict(0, other, **unknown))  # attributes alone
    dropped = {f"{name}_keep": nothing for name in ("reference", "kps", "audio", "any")}
    prediction = predict(0, one, **dropped, attribute_keep=torch.zeros(1, 2, 6))
    assert (
        relative_error(prediction.detach(), networks.denoising_unet(latents, timesteps, Conditions()).detach()) < 1e-5
    )
    prediction.square().mean().backward()
    for name, parameter in networks.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
