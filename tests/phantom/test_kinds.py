"""Which label a tissue belongs to."""

import pytest

from mambamim_nets.phantom.kinds import label_of


@pytest.mark.parametrize(
    ("tissue", "labels", "name"),
    [
        pytest.param("hepatic vessel", ["hepatic vessel", "liver"], "hepatic vessel", id="labelled itself"),
        pytest.param("hepatic vessel", ["liver"], "liver", id="in an organ"),
        pytest.param("hepatic vessel", ["spleen"], "liver", id="in an organ without a label"),
        pytest.param("urine", ["urinary bladder"], "urinary bladder", id="content"),
        pytest.param("urine", ["bladder"], "bladder", id="content of an organ of another name"),
        pytest.param("right kidney", ["right kidney", "kidneys"], "right kidney", id="a pair of two labels"),
        pytest.param("right kidney", ["liver", "kidneys"], "kidneys", id="a pair of one label in CT-ORG"),
        pytest.param("left kidney", ["kidney", "tumour"], "kidney", id="a pair of one label in KiTS"),
        pytest.param("marrow", ["bone"], "bone", id="tissue of a group"),
        pytest.param("marrow", ["liver"], "marrow", id="tissue that nothing labels"),
    ],
)
def test_a_tissue_counts_as_the_finest_structure_that_is_labelled(tissue, labels, name):
    assert label_of(tissue, labels) == name
