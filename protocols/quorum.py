"""A quorum: signatures of one statement by so many of the cohort that no two statements have one.

With 2q > n + c, two sets of q signers share one who is honest, and who signs once (Bonawitz et al. 2017,
section 6.2, where it is t signatures of survivors; here the count is over the cohort, so that it holds for
sparse graphs too). Whoever opens something asks for a quorum of what is opened first.

What it does not protect against: more than c who sign whatever they are given.
"""

from __future__ import annotations

from protocols.errors import RemoteError
from protocols.session import Session
from protocols.wire import members, pieces
from secagg import keys
from secagg.invalid import Invalid


def check_quorum(
    session: Session, statement: bytes, included: bytes, signers: bytes, signatures: bytes
) -> None:
    """`RemoteError` unless as many as the session says, all of them `included`, signed the statement.

    `included` and `signers` are bitmaps over the cohort; `signatures` follow one another, 64 bytes each.
    """
    n = len(session.names)
    who = members(signers, n)
    each = pieces("signatures", signatures, len(who), keys.SIGNATURE_BYTES)
    if len(who) < session.parameters.quorum:
        raise RemoteError(f"quorum: {len(who)} signatures, {session.parameters.quorum} are needed")
    if not set(members(included, n)).issuperset(who):
        raise RemoteError("quorum: a signer is not among those included")
    for signer, signature in zip(who, each, strict=True):
        try:
            keys.verify(session.identities[signer], statement, signature)
        except Invalid:
            raise RemoteError("quorum: a signature of what is included does not verify") from None
