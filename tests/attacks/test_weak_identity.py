"""A roster entry of small order: anyone could sign as that client, and vote in every quorum."""

import pytest

from protocols.errors import LocalError
from protocols.session import Session
from secagg import keys
from secagg.invalid import Invalid
from secagg.keys import Identity

# Points of order 1, 2, 4 and 8, and a second encoding of the identity's (RFC 8032, section 5.1).
SMALL = [
    bytes([1]) + bytes(31),
    (2**255 - 19 - 1).to_bytes(32, "little"),
    bytes(32),
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    bytes([1]) + bytes(30) + bytes([0x80]),
]


def test_such_a_key_verifies_anything():
    """Why it must not get into a roster."""
    keys.verify(SMALL[0], b"whatever the server likes", SMALL[0] + bytes(32))


@pytest.mark.parametrize("point", SMALL)
def test_identity_of_small_order_is_refused(point):
    with pytest.raises(Invalid, match="full order"):
        keys.check_identity(point)
    roster = {name: Identity.generate().public for name in "abcd"} | {"evil": point}
    with pytest.raises(LocalError, match="'evil': identity"):
        Session(roster, 2, 10, threat_model="malicious")
