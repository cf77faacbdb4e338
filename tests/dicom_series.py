"""Small DICOM series for tests, in several orientations, with or without preamble, and with what a test changes."""

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from mambamim_nets.bundle.io.dicom_series import series_of

SHAPE = (7, 5, 4)  # rows, columns, slices
SPACING = (0.7, 1.3, 2.5)  # between rows, columns, slices: pixels are not square
COSINE, SINE = np.cos(0.4), np.sin(0.4)
ORIENTATIONS = {
    "head first": [1, 0, 0, 0, 1, 0],
    "feet first": [-1, 0, 0, 0, 1, 0],
    "sagittal": [0, 1, 0, 0, 0, -1],
    "oblique": [COSINE, SINE, 0, -SINE * COSINE, COSINE * COSINE, SINE],
}
CT = "1.2.840.10008.5.1.4.1.1.2"


def header(position, orientation, uid, number=3) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CT, generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["study"]), uid
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame"])
    dataset.Modality, dataset.SeriesNumber, dataset.PatientID, dataset.PatientName = "CT", number, "phantom", "A^B"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.ImagePositionPatient = [f"{value:.10g}" for value in position]
    dataset.ImageOrientationPatient = [f"{value:.10g}" for value in orientation]
    dataset.PixelSpacing, dataset.SliceThickness = list(SPACING[:2]), 9.0  # thickness is not the gap
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept = 2, -1000
    return dataset


def save(dataset, path, preamble=True, syntax=ExplicitVRLittleEndian):
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = syntax
    if preamble:
        dataset.save_as(path, enforce_file_format=True)
    else:
        del dataset.file_meta
        dataset.save_as(path, enforce_file_format=False, implicit_vr=True, little_endian=True)


def write_series(
    folder,
    kind="head first",
    number=3,
    slices=SHAPE[2],
    preamble=True,
    suffix=".dcm",
    change=None,
    syntax=ExplicitVRLittleEndian,
):
    """Write a series whose file names are in no spatial order; return its SeriesInstanceUID."""
    folder.mkdir(parents=True, exist_ok=True)
    uid, orientation = generate_uid(), np.array(ORIENTATIONS[kind], dtype=float)
    orientation[3:] /= np.linalg.norm(orientation[3:])
    orientation[3:] -= (orientation[3:] @ orientation[:3]) * orientation[:3]
    orientation[3:] /= np.linalg.norm(orientation[3:])
    normal = np.cross(orientation[:3], orientation[3:])
    rng = np.random.default_rng(0)
    names = rng.permutation(slices)
    for index in range(slices):
        dataset = header([-20.5, 31.25, -100.125] - index * SPACING[2] * normal, orientation, uid, number)
        dataset.InstanceNumber = index + 1
        dataset.Rows, dataset.Columns = SHAPE[:2]
        dataset.PixelData = rng.integers(0, 1000, SHAPE[:2]).astype("<i2").tobytes()
        if change is not None:
            change(index, dataset)
        save(dataset, folder / f"s{number}_{names[index]}{suffix}", preamble, syntax)
    return uid


# --- what `change` of write_series may do ---------------------------------------------------------


def tilted(index, dataset):
    """Shift each slice by 1 mm more within its plane."""
    dataset.ImagePositionPatient[1] += index


def turned(index, dataset):
    """Turn the fourth slice."""
    if index == 3:
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]


def repeated(index, dataset):
    """Put the fourth slice where the third is."""
    if index == 3:
        dataset.ImagePositionPatient[2] += SPACING[2]


def another_frame(index, dataset):
    """Give the third slice a frame of reference of its own."""
    if index == 2:
        dataset.FrameOfReferenceUID += ".2"


# --- results --------------------------------------------------------------------------------------


def rebuilt(path, shape, affine) -> np.ndarray:
    """Put every pixel of every frame of a DICOM-SEG into a grid, by its place in the world."""
    seg = dcmread(path)
    frames = seg.pixel_array.reshape(seg.NumberOfFrames, seg.Rows, seg.Columns)
    shared = seg.SharedFunctionalGroupsSequence[0]
    spacing = [float(value) for value in shared.PixelMeasuresSequence[0].PixelSpacing]
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=float)
    to_voxel = np.linalg.inv(affine) @ np.diag([-1, -1, 1, 1])
    out = np.zeros(shape, dtype="uint8")
    for frame, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        row, column = np.nonzero(frame)
        place = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, dtype=float)[:, None]
        place = place + orientation[:3, None] * column * spacing[1] + orientation[3:, None] * row * spacing[0]
        voxel = to_voxel[:3, :3] @ place + to_voxel[:3, 3:]
        np.testing.assert_allclose(voxel, voxel.round(), atol=0.02)
        segment = groups if "SegmentIdentificationSequence" in groups else shared  # shared where there is one segment
        out[tuple(voxel.round().astype(int))] = segment.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    return out


# --- labelled data sets ---------------------------------------------------------------------------


def write_volume(folder, voxels, spacing=(2.0, 2.0, 2.5), patient="one", change=None):
    """Write voxels (columns, rows, slices) of int16 as a CT series of a patient; return it as it is found."""
    folder.mkdir(parents=True, exist_ok=True)
    uid = generate_uid()
    for index in range(voxels.shape[2]):
        dataset = header([-30.0, -40.0, index * spacing[2]], ORIENTATIONS["head first"], uid)
        dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = (
            generate_uid(entropy_srcs=[kind, patient, str(folder)]) for kind in ("study", "frame")
        )
        dataset.PatientID, dataset.InstanceNumber = patient, index + 1
        dataset.PixelSpacing, dataset.RescaleSlope, dataset.RescaleIntercept = [spacing[1], spacing[0]], 1, 0
        dataset.Rows, dataset.Columns = voxels.shape[1::-1]
        dataset.PixelData = voxels[:, :, index].T.astype("<i2").tobytes()
        if change is not None:
            change(index, dataset)
        save(dataset, folder / f"slice_{index:03d}.dcm")
    (series,) = series_of(folder)[0]
    return series


def highdicom_seg(path, array, series, affine, names, segmentation_type="BINARY", **options):
    """Write a DICOM-SEG by highdicom alone, on a grid of its own, whose affine is in RAS mm; return its path.

    The axes of the array are frames, rows and columns, in any direction of the patient; segment n is where it is n.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    algorithm = hd.AlgorithmIdentificationSequence("by hand", codes.DCM.ArtificialIntelligence, "1")
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.Organ,
            segmented_property_type=codes.SCT.Liver,
            algorithm_type="SEMIAUTOMATIC",
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(names, start=1)
    ]
    sources = [dcmread(file) for file in series.files]
    for source in sources:
        source.AccessionNumber = source.StudyID = ""
        source.PatientBirthDate = source.PatientSex = source.StudyDate = source.StudyTime = None
    volume = hd.Volume(
        array,
        np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine,
        coordinate_system="PATIENT",
        frame_of_reference_uid=sources[0].FrameOfReferenceUID,
    )
    segmentation = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=volume,
        segmentation_type=segmentation_type,
        segment_descriptions=segments,
        series_instance_uid=generate_uid(),
        series_number=4,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="test",
        manufacturer_model_name="test",
        software_versions="1",
        device_serial_number="1",
        **options,
    )
    segmentation.save_as(path)
    return path
