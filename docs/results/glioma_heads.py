"""Make a BraTS-like data set out of a few patients with glioma and label maps of heads, for bundles/brats_seg.

    python docs/results/glioma_heads.py BRATS HEADS TARGET [--copies 4] [--transplants 6] [--painted 3] [--seed 0]

BRATS is a Decathlon folder of four modalities and labels 0, 1, 2, 4 (here nine training and three validation cases of
BraTS 2018 at 2 mm); HEADS holds label maps of whole heads with FreeSurfer's numbers (SynthSeg's training maps, 1 mm).
TARGET gets a Decathlon folder of training cases, which `--fold official` reads; the validation cases come over as they
are, and nothing is made of them. A training case comes over

- as it is, and `copies` times with other contrasts, coils and sharpness;
- `transplants` times with another patient's tumour in the place of its own: the tumour gives way to the other half of
  the brain, and the donor's voxels, turned, scaled, bent and at times mirrored, are laid around their place;

and each head `painted` times: skull stripped, bent, each tissue of a drawn grey value in each modality, and the tumour
of a patient laid into it. One in six of these brains and of the transplants, by chance, gets no tumour. Grey values of
a donor are counted from median and spread of the healthy part of its brain, and laid into those of the host's.
"""

import json
import shutil
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
from numpy.random import Generator
from scipy import ndimage
from scipy.spatial.transform import Rotation

SPACING = 2.0
TUMOUR = (1, 2, 4)
HEALTHY = 1 / 6
ORDER = ("t1", "t1ce", "t2", "flair")
TISSUES = {  # FreeSurfer's numbers, and usual grey values of T1, contrast-enhanced T1, T2 and FLAIR, white matter 1
    "white": ((2, 7, 41, 46, 77, 251, 252, 253, 254, 255), (1.0, 1.0, 1.0, 1.0)),
    "cortex": ((3, 8, 42, 47, 17, 18, 53, 54), (0.75, 0.78, 1.35, 1.2)),
    "deep grey": ((9, 10, 11, 12, 13, 26, 28, 48, 49, 50, 51, 52, 58, 60), (0.85, 0.87, 1.15, 1.1)),
    "stem": ((16, 85), (0.92, 0.92, 1.1, 1.0)),
    "fluid": ((4, 5, 14, 15, 24, 43, 44, 72), (0.35, 0.35, 2.6, 0.35)),
    "vessel": ((30, 31, 62, 63), (0.6, 1.5, 1.2, 0.7)),
}


class Brain:
    """Four modalities (4, X, Y, Z) float, label (X, Y, Z) and where there is brain, on an RAS grid of 2 mm."""

    def __init__(self, image: np.ndarray, label: np.ndarray):
        self.image, self.label, self.inside = image, label, (image > 0).any(0)
        healthy = image[:, self.inside & (label == 0)]
        self.middle = np.median(healthy, 1)[:, None, None, None]
        self.spread = np.median(np.abs(healthy - self.middle[..., 0, 0]), 1)[:, None, None, None] + 1e-6

    @property
    def centre(self) -> np.ndarray:
        """Middle of the box around the brain, voxels (3,)."""
        return np.array([(where.min() + where.max()) / 2 for where in np.nonzero(self.inside)])

    def at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return grey values from the middle in spreads (4, ...), and label, at places (3, ...) in voxels."""
        scaled = (self.image - self.middle) / self.spread
        values = np.stack([ndimage.map_coordinates(channel, places, order=1) for channel in scaled])
        return values, ndimage.map_coordinates(self.label, places, order=0)

    def lay(self, values: np.ndarray, label: np.ndarray, where: np.ndarray) -> "Brain":
        """Return this brain with other grey values, in spreads from the middle, and labels in a part of it."""
        part = where & self.inside
        soft = ndimage.gaussian_filter(ndimage.binary_dilation(part).astype(float), 0.7) * self.inside
        image = self.image * (1 - soft) + np.maximum(self.middle + self.spread * values, 1e-3) * soft
        return Brain(image, np.where(part, label, self.label))


def field(rng: Generator, shape: tuple[int, ...], cells: int) -> np.ndarray:
    """Return a smooth random field of about unit variance."""
    knots = rng.normal(size=(cells,) * 3)
    drawn = ndimage.zoom(knots, [n / cells for n in shape], order=3, mode="nearest", grid_mode=True)
    return drawn[: shape[0], : shape[1], : shape[2]] / drawn.std()


def bent(rng: Generator, shape: tuple[int, ...], most: float) -> np.ndarray:
    """Return smooth displacements (3, X, Y, Z) of up to about `most` mm."""
    return rng.uniform(0, most) / SPACING * np.stack([field(rng, shape, 5) for _ in range(3)])


def without_tumour(brain: Brain) -> Brain:
    """Return a brain whose tumour gave way to the other half; what is tumour there, too, stays."""
    places = np.indices(brain.inside.shape).astype(float)
    places[0] = 2 * brain.centre[0] - places[0]
    values, label = brain.at(places)
    return brain.lay(values, label, ndimage.binary_dilation(brain.label > 0, iterations=2) & (values > -20).all(0))


def with_tumour(host: Brain, donor: Brain, rng: Generator) -> Brain:
    """Return a brain with another patient's tumour, near where it was, of which three quarters lie in the brain.

    A brain in which no place of 20 drawn ones is such stays as it is; `main` says how many cases hold no tumour.
    """
    shape = host.inside.shape
    seat = np.argwhere(donor.label > 0).mean(0) - donor.centre
    for _ in range(20):
        turn = Rotation.from_rotvec(rng.normal(0, 0.35, 3)).as_matrix() * rng.uniform(0.75, 1.5)
        turn = turn * np.array([rng.choice([-1.0, 1.0]), 1, 1])[:, None]
        sign = np.array([np.sign(np.linalg.det(turn)), 1, 1])
        target = host.centre + seat * sign + rng.normal(0, 12 / SPACING, 3)
        places = np.indices(shape) - target[:, None, None, None] + bent(rng, shape, 5)
        places = np.tensordot(turn, places, 1) + (donor.centre + seat)[:, None, None, None]
        values, label = donor.at(places)
        tumour = label > 0
        if tumour.sum() > 100 and (tumour & host.inside).sum() > 0.75 * tumour.sum():
            return host.lay(values, label, tumour)
    return host


def paint(map_: np.ndarray, rng: Generator) -> Brain:
    """Return a healthy brain painted on a label map of a head (X, Y, Z) of 2 mm."""
    grid = np.indices(map_.shape) + bent(rng, map_.shape, 6)
    numbers = ndimage.map_coordinates(map_, grid, order=0)
    image = np.zeros((4, *map_.shape))
    texture = field(rng, map_.shape, 24)
    for numbers_of, usual in TISSUES.values():
        grey = np.array(usual) * np.exp(rng.normal(0, 0.1, 4))
        rough = grey * rng.uniform(0.01, 0.06, 4)
        where = np.isin(numbers, numbers_of)
        image[:, where] = grey[:, None] + rough[:, None] * texture[where]
    inside = ndimage.binary_closing(image[0] > 0, iterations=2)
    image[:, inside & (image[0] == 0)] = np.array(TISSUES["fluid"][1])[:, None]
    blurred = np.stack([ndimage.gaussian_filter(channel, rng.uniform(0.35, 0.7)) for channel in image])
    noise = rng.normal(size=image.shape) * rng.uniform(0.01, 0.06, (4, 1, 1, 1))
    return Brain(np.maximum(blurred + noise, 1e-3) * inside, np.zeros(map_.shape, int))


def rescanned(brain: Brain, rng: Generator) -> Brain:
    """Return a brain with other contrasts, coils and sharpness in each modality."""
    image = np.empty_like(brain.image)
    for channel, values in enumerate(brain.image):
        low, high = np.percentile(values[brain.inside], (0.5, 99.5))
        scaled = np.clip((values - low) / (high - low), 0, 1.3) ** np.exp(rng.normal(0, 0.25))
        scaled = scaled * np.exp(rng.uniform(0, 0.2) * field(rng, values.shape, 3))
        if rng.random() < 0.5:
            scaled = ndimage.gaussian_filter(scaled, rng.uniform(0, 0.7, 3))
        scaled += rng.normal(size=scaled.shape) * rng.uniform(0, 0.04)
        image[channel] = np.maximum(scaled, 1e-3) * brain.inside
    return Brain(image, brain.label)


def read(folder: Path, entry: dict[str, str], channels: list[int]) -> Brain:
    """Return a case of a Decathlon folder."""
    image, label = (nib.as_closest_canonical(nib.load(folder / entry[key])) for key in ("image", "label"))
    return Brain(np.moveaxis(np.asarray(image.dataobj, float), -1, 0)[channels], np.asarray(label.dataobj, int))


def read_head(path: Path) -> np.ndarray:
    """Return the brain of a label map of a whole head, of 2 mm, cropped with a margin; 0 where there is none."""
    numbers = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)[::2, ::2, ::2]
    numbers = np.where(np.isin(numbers, [number for of, _ in TISSUES.values() for number in of]), numbers, 0)
    box = tuple(slice(max(0, where.min() - 4), where.max() + 5) for where in np.nonzero(numbers))
    return numbers[box]


def main(
    brats: str, heads: str, target: str, copies: int = 4, transplants: int = 6, painted: int = 3, seed: int = 0
) -> None:
    """Write the data set; a TARGET that is there is refused."""
    source, folder = Path(brats), Path(target)
    lists = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    modalities = {name: int(number) for number, name in lists["modality"].items()}
    cases = [read(source, entry, [modalities[name] for name in ORDER]) for entry in lists["training"]]
    made: list[dict[str, str]] = []
    empty: list[str] = []

    def write(name: str, brain: Brain) -> None:
        affine = np.diag([SPACING] * 3 + [1])
        image = np.rint(np.moveaxis(brain.image / brain.image.max() * 8000, 0, -1)).astype(np.int16)
        image[brain.inside] = np.maximum(image[brain.inside], 1)
        nib.save(nib.Nifti1Image(image, affine), folder / "imagesTr" / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(brain.label.astype(np.uint8), affine), folder / "labelsTr" / f"{name}.nii.gz")
        made.append({key: f"{key}sTr/{name}.nii.gz" for key in ("image", "label")})
        if not brain.label.any():
            empty.append(name)

    def other(rng: Generator, not_this: int = -1) -> Brain:
        return cases[rng.choice([number for number in range(len(cases)) if number != not_this])]

    for number, case in enumerate(cases):
        write(f"patient{number:02d}-00", case)
        for copy in range(1, copies + 1):
            write(f"patient{number:02d}-{copy:02d}", rescanned(case, np.random.default_rng([seed, 0, number, copy])))
        emptied = without_tumour(case)
        for copy in range(transplants):
            rng = np.random.default_rng([seed, 1, number, copy])
            brain = emptied if rng.random() < HEALTHY else with_tumour(emptied, other(rng, number), rng)
            write(f"transplant{number:02d}-{copy:02d}", rescanned(brain, rng))
    for number, path in enumerate(sorted(Path(heads).glob("*.nii.gz"))):
        head = read_head(path)
        for copy in range(painted):
            rng = np.random.default_rng([seed, 2, number, copy])
            brain = paint(head, rng)
            brain = brain if rng.random() < HEALTHY else with_tumour(brain, other(rng), rng)
            write(f"head{number:02d}-{copy:02d}", rescanned(brain, rng))
        print(f"{path.name}: {painted} brains")
    for entry in lists["validation"]:
        for key in ("image", "label"):
            shutil.copy(source / entry[key], folder / f"{key}sTr")
    lists |= {"training": made, "numTraining": len(made)}
    (folder / "dataset.json").write_text(json.dumps(lists, indent=1), encoding="utf-8")
    print(f"{len(made)} training cases, {len(empty)} of them without a tumour {empty}")


if __name__ == "__main__":
    fire.Fire(main)
