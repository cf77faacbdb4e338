"""TensorBoard's files of a resumed run."""

import pytest

from mambamim_nets.bundle.handlers.event_files import drop_rows_after


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(folder))
    log.Reload()
    return {tag: [(row.step, row.value) for row in log.Scalars(tag)] for tag in log.Tags()["scalars"]}


def write(folder, epochs, first=1):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for epoch in range(first, epochs + 1):
            writer.add_scalar("loss", epoch / 8, 2 * epoch)
            writer.add_scalar("epoch", epoch, 2 * epoch)


@pytest.mark.parametrize("damaged", [False, True])
def test_rows_after_an_epoch_are_dropped_and_those_before_stay(tmp_path, damaged):
    write(tmp_path, 3)
    (file,) = tmp_path.iterdir()
    if damaged:  # as a kill may leave it
        file.write_bytes(file.read_bytes() + b"\x18\x00\x00")
    drop_rows_after(tmp_path, "epoch", 4)
    assert scalars(tmp_path) == {"loss": [(2, 0.125), (4, 0.25)], "epoch": [(2, 1.0), (4, 2.0)]}
    before = file.read_bytes()
    drop_rows_after(tmp_path, "epoch", 4)
    drop_rows_after(tmp_path, "epoch", 14)
    drop_rows_after(tmp_path / "none", "epoch", 1)
    assert file.read_bytes() == before
    write(tmp_path, 3, first=3)
    rows = scalars(tmp_path)["loss"]
    assert sorted(rows) == [(2, 0.125), (4, 0.25), (6, 0.375)]  # files of one second have any order
