"""What masked pre-training needs of a trainer: its batch, its loss and its pictures."""

from types import SimpleNamespace

import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedTrainer
from monai.transforms import RandSpatialCropd

from mambamim_nets import HyMamba, MambaMIM
from mambamim_nets.bundle.handlers.pretraining import ReconstructionPictures, mim_batch, mim_loss

pytestmark = pytest.mark.usefixtures("all_narrow")

DEVICE = torch.device("cpu")


def test_an_image_is_its_own_target_and_a_distorted_copy_goes_to_the_network():
    image, distorted = MetaTensor(torch.rand(2, 1, 4, 4, 4)), torch.rand(2, 1, 4, 4, 4)
    given, target, more, named = mim_batch({"image": image}, DEVICE, False)
    assert given is target and type(given) is torch.Tensor and (more, named) == ((), {})
    given, target, more, _ = mim_batch({"image": image, "distorted": distorted}, DEVICE, False)
    assert torch.equal(given, distorted) and torch.equal(target, image.as_tensor()) and more[0] is target


def test_removed_faces_are_voxels_without_loss_or_are_refused():
    image, face = torch.rand(2, 1, 4, 4, 4), torch.zeros(2, 1, 4, 4, 4, dtype=torch.uint8)
    face[1, 0, 2] = 1
    _, target, more, _ = mim_batch({"image": image, "distorted": image.clone(), "face": face}, DEVICE, False)
    assert more[0] is target and more[1].dtype == torch.bool and torch.equal(more[1], face > 0)
    with pytest.raises(ValueError, match="this method, which scores whole crops, cannot leave their voxels out"):
        mim_batch({"image": image, "face": face}, DEVICE, False)


def test_the_loss_is_the_networks_own():
    assert mim_loss(SimpleNamespace(loss=3), torch.zeros(1)) == 3


class Writer:
    """As much of a SummaryWriter as pictures need."""

    def __init__(self):
        self.epochs = []

    def add_image(self, name, picture, epoch, dataformats):
        assert name == "reconstruction" and picture.ndim == 3 and dataformats == "HWC"
        self.epochs.append(epoch)


@pytest.mark.parametrize(("interval", "epochs"), [(1, [1, 2, 3]), (2, [2, 3]), (5, [3])])
def test_pictures_come_at_intervals_and_at_the_end_and_change_no_training(tmp_path, interval, epochs):
    states = []
    for pictures in (False, True):
        torch.manual_seed(0)
        network, writer = MambaMIM(HyMamba(1, size="tiny"), decoder_width=32), Writer()
        items = [{"image": torch.rand(1, 32, 32, 32, generator=torch.Generator().manual_seed(1))}]
        trainer = SupervisedTrainer(
            device=DEVICE,
            max_epochs=3,
            train_data_loader=DataLoader(Dataset(items)),
            network=network,
            optimizer=torch.optim.SGD(network.parameters(), lr=0.01),
            loss_function=mim_loss,
            prepare_batch=mim_batch,
            decollate=False,
        )
        if pictures:
            ReconstructionPictures(network, str(tmp_path), interval, writer).attach(trainer)
        trainer.run()
        states.append(network.state_dict())
    assert writer.epochs == epochs and (tmp_path / "reconstruction.png").stat().st_size > 1000
    kept = sorted(path.name for path in (tmp_path / "reconstructions").iterdir())
    assert kept == [f"{epoch:05d}.png" for epoch in epochs]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_the_crop_of_the_pictures_is_the_same_after_every_start(tmp_path):
    scan = {"image": torch.rand(1, 48, 48, 48)}
    crop = RandSpatialCropd("image", (32, 32, 32), random_size=False)
    held_out = [{"image": torch.rand(1, 32, 32, 32), "visible": torch.rand(1, 2, 2, 2) > 0.5}]
    engine = SimpleNamespace(data_loader=SimpleNamespace(dataset=Dataset([scan], crop)))
    taken = []
    for number in range(3):
        torch.manual_seed(number)
        crop.set_random_state(number)
        pictures = ReconstructionPictures(None, str(tmp_path), 1)
        pictures._take(engine)
        taken.append(pictures.batch["image"])
    assert taken[0].shape == (1, 1, 32, 32, 32) and all(torch.equal(taken[0], other) for other in taken)
    pictures = ReconstructionPictures(None, str(tmp_path), 1, dataset=held_out)
    pictures._take(engine)
    assert torch.equal(pictures.batch["visible"][0], held_out[0]["visible"])
