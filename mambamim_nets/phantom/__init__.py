"""The embedded data set: procedural CT-like and MR-like anatomy with labels, so that every command runs at once.

SYNTHETIC: no voxel comes from a patient, and no number measured on it says anything about patients.

A subject is painted, not simulated. `Part` tables place structures in body millimetres: each is a set of paths along
which a ball of changing radius is swept, so that one primitive draws kidneys, vessels, stomach, ventricles and tumours.
A subject has its own size, a smooth random displacement of the whole body, its own shift and girth of every part, its
own intensities, texture and noise. Painting fills a map of tissues; image and label are look-ups in it.

Glossary
    body millimetres   x to the patient's right, y to the front, z upwards (RAS); the volume's centre is about (0, 0, 0)
                       (amos: (0, 0, -64), ctorg: (0, 0, 190))
    path               rows (x, y, z, radius), all in mm
    tissue             a name in the table of values of a kind: anatomy.HU, pelvis.AMOS_HU, brain.TISSUES, ...; later
                       parts are painted over earlier ones
    field of view      fixed per kind; `shape` and `spacing` only choose how finely it is sampled (both: crop or pad)
"""

from mambamim_nets.phantom.dataset import VERSION, write
from mambamim_nets.phantom.kinds import KINDS, Kind
from mambamim_nets.phantom.subjects import Subject, Tissues, landmarks, make, tissues

__all__ = ["KINDS", "VERSION", "Kind", "Subject", "Tissues", "landmarks", "make", "tissues", "write"]
