"""The kind "hippocampus": crops of varying shape, with the anterior part in front."""

from phantom_sizes import centres, millilitres

from mambamim_nets import phantom


def test_hippocampus_crops_vary_and_anterior_is_in_front():
    subjects = [phantom.make("hippocampus", seed) for seed in range(6)]
    assert len({s.label.shape for s in subjects}) > 3
    assert max(s.image.mean() for s in subjects) > 2 * min(s.image.mean() for s in subjects)
    for s in subjects:
        assert all(low <= n <= high for n, low, high in zip(s.label.shape, (31, 40, 24), (43, 59, 47), strict=True))
        assert centres(s, "hippocampus")["anterior"][1] > centres(s, "hippocampus")["posterior"][1] + 10
        assert all(0.9 < millilitres(s, value) < 2.8 for value in (1, 2))
