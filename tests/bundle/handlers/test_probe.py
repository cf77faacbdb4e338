"""A linear segmentation on frozen features: its algebra, what it finds, and that training does not notice it."""

import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from monai.data import Dataset
from monai.engines import SupervisedTrainer
from monai.transforms import RandFlipd
from torch import nn
from torch.testing import assert_close

from mambamim_nets.bundle.handlers import probe
from mambamim_nets.bundle.handlers.probe import LinearProbe, discriminant

SHAPE = (16, 24, 16)


def maps(seed=0, channels=(2, 3)):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(1, width, *(side // stride for side in SHAPE), generator=generator)
        for width, stride in zip(channels, (1, 4), strict=True)
    ]


def test_features_of_a_voxel_are_those_of_the_interpolated_maps():
    fine, coarse = maps()
    whole = torch.cat([fine, F.interpolate(coarse, size=SHAPE, mode="trilinear", align_corners=False)], 1)[0]
    voxels = torch.tensor([[0, 0, 0], [15, 23, 15], [3, 17, 8], [7, 0, 15]])
    assert_close(probe._features_at([fine, coarse], voxels, SHAPE), whole[:, *voxels.T].T, rtol=1e-4, atol=1e-5)
    weights, biases = torch.randn(4, 5), torch.randn(4)
    expected = torch.einsum("cf,fdhw->cdhw", weights, whole) + biases[:, None, None, None]
    assert_close(probe._scores([fine, coarse], weights, biases, SHAPE), expected, rtol=1e-4, atol=1e-4)


def test_discriminants_are_those_of_gaussians_of_one_covariance():
    """Two classes a distance d apart with equal spread s and shares p, q meet at the middle + s^2 log(p / q) / d."""
    torch.manual_seed(0)
    labels = torch.arange(4000) % 2
    features = torch.randn(4000, 2) * torch.tensor([0.5, 100.0]) + labels[:, None] * torch.tensor([2.0, 0.0])
    weights, biases = discriminant(features, labels, torch.tensor([900.0, 100.0]))
    border = (biases[0] - biases[1]) / (weights[1, 0] - weights[0, 0])
    assert border == pytest.approx(1 + 0.25 * torch.log(torch.tensor(9.0)).item() / 2, abs=0.05)
    assert abs(weights[1, 1] - weights[0, 1]) < 0.01 * abs(weights[1, 0] - weights[0, 0])
    weights, biases = discriminant(features, labels, torch.tensor([900.0, 100.0, 0.0]))
    assert biases[2] == -torch.inf and torch.isfinite(weights).all(), "what is never met is never found"


class Model(nn.Module):
    """A model whose encoder shows the image, as much as its one weight lets through."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.encoder = nn.Conv3d(1, 1, 1, bias=False)
        nn.init.constant_(self.encoder.weight, weight)
        self.encoder.register_forward_hook(lambda module, args, output: [output, F.avg_pool3d(output, 4)])

    def forward(self, x):
        return self.encoder(x)[0].mean((1, 2, 3, 4), keepdim=True)[..., 0, 0, 0]


def crop(seed):
    """Two structures, 3 and 7, of their own brightness."""
    label = torch.zeros(1, *SHAPE)
    label[:, 2:9, 2 + seed : 9 + seed, 2:9], label[:, 10:, 12:, 10:] = 3, 7
    noise = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return {"image": label + 0.1 * noise, "label": label}


def trained(interval=None, epochs=3, weight=1.0):
    torch.manual_seed(0)
    network, rows = Model(weight), []
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=[{"image": torch.ones(1, 1, *SHAPE), "label": torch.zeros(1, 1)}] * 2,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.01),
        loss_function=nn.MSELoss(),
        decollate=False,
    )
    writer = SimpleNamespace(add_scalar=lambda *row: rows.append(row))
    if interval:
        flip = RandFlipd(["image", "label"], prob=0.5)
        training = Dataset([crop(0), crop(1), crop(2)], flip)
        validation = Dataset([0], lambda _: [crop(3), crop(4)])  # several crops of a scan
        made = LinearProbe(network, training, validation, {"liver": 3, "spleen": 7}, interval, writer)
        made.attach(trainer)
    trainer.run()
    return network, trainer, rows


def test_what_features_show_is_found_and_training_does_not_notice(caplog):
    caplog.set_level("INFO")
    network, trainer, rows = trained(interval=2)
    plain, _, _ = trained()
    assert torch.equal(network.encoder.weight, plain.encoder.weight) and network.encoder.training
    assert [row[2] for row in rows if row[0] == "probe_dice"] == [0, 2, 3], "before, every second epoch, the last"
    assert {row[0] for row in rows} == {"probe_dice", "probe_dice/liver", "probe_dice/spleen"}
    assert all(row[1] > 0.97 for row in rows)
    assert trainer.state.probed["probe_dice of liver"] == rows[-2][1]
    assert trainer.state.probed_before["probe_dice of liver"] == rows[1][1]
    for when in ("before training", "after epoch 2/3", "after epoch 3/3"):
        assert re.search(rf"probe {when}: Dice [01]\.\d{{4}}, liver [01]\.\d{{4}}, spleen ", caplog.text)


def test_features_that_show_nothing_find_nothing():
    rows = trained(interval=5, epochs=1, weight=0.0)[-1]
    assert [row[1] for row in rows if row[0] == "probe_dice"] == [0.0, 0.0]
