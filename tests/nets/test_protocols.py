"""Encoders as pre-training and loading see them."""

import pytest
import torch
from torch.testing import assert_close

from mambamim_nets import HyMamba, HyMambaFeatures, HyMambaSeg, MambaUNETR, MMUNet, NNMambaSeg, VisionMamba
from mambamim_nets.masking import expand_visible
from mambamim_nets.nets import Encoder

ENCODERS = {"HyMamba": HyMamba, "VisionMamba": VisionMamba}


@pytest.mark.parametrize(
    ("network", "is_encoder"),
    [
        (HyMamba(size="tiny"), True),
        (HyMambaFeatures(size="tiny"), True),
        (VisionMamba(size="tiny"), True),
        (HyMambaSeg(1, 2, "tiny"), False),
        (MambaUNETR(1, 2, "tiny"), False),
        (NNMambaSeg(1, 2, width=16), False),
        (MMUNet(1, 2, "tiny"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_encoders_are_those_with_tokens_and_masks(network, is_encoder):
    assert isinstance(network, Encoder) is is_encoder


@pytest.mark.parametrize("kind", ENCODERS)
def test_what_stands_in_hidden_places_is_the_token_alone(kind):
    encoder = ENCODERS[kind](size="tiny").eval()
    x, token = torch.rand(2, 1, 32, 48, 16), torch.rand(encoder.token_shape)
    visible = torch.tensor([True, False, True, True, False, False]).view(1, 1, 2, 3, 1).repeat(2, 1, 1, 1, 1)
    other = torch.where(expand_visible(visible, 16), x, torch.rand_like(x))
    with torch.no_grad():
        encoding, same = (encoder.encode_filled(image, visible, token) for image in (x, other))
        plain = encoder.encode(x)
    assert encoding.tokens.shape == (2, 6, encoder.widths[-1]) and not encoding.skips
    assert_close(encoding.tokens, same.tokens, rtol=0, atol=0)
    assert (encoding.tokens - plain.tokens).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_decoder_is_put_on_the_encoder_itself(kind):
    encoder = ENCODERS[kind](in_channels=2, size="tiny")
    network = encoder.with_decoder(3)
    assert network.encoder is encoder
    assert network(torch.rand(1, 2, 32, 32, 16)).shape == (1, 3, 32, 32, 16)
