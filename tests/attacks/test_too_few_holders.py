"""Attack, or bad luck: so few holders of one client's shares are left that the threshold loses its meaning.

Each side looks before it does what cannot be undone: a client before it deals and before it answers, the
server before it asks, so that the round ends with nothing revealed and may be tried again.
"""

import pytest
from msgspec.structs import replace

from protocols.errors import Aborted
from protocols.pairwise import Stop
from protocols.wire import bitmap

AGREED = {  # cohort, and an expert's degree and threshold: many may go, but few of the same neighbours
    "honest-but-curious": (60, {"dropout": 0.2, "degree": 18, "threshold": 7}),
    "semi-malicious": (120, {"dropout": 0.1, "degree": 28, "threshold": 17}),
}
ONE = "007"


@pytest.fixture(params=AGREED)
def sparse(request, play):
    """A sparse cohort, in which one client may lose too many neighbours while few are gone in all."""
    n, agreed = AGREED[request.param]
    names = tuple(f"{i:03}" for i in range(n))
    cohort = play(names=names, threat_model=request.param, protocol="secagg+", corrupted=0.02, **agreed)
    p = cohort.session.parameters
    assert not cohort.session.complete
    assert p.degree - p.threshold + 1 <= p.dropped  # so many may go, and might all be neighbours
    assert n - (p.degree - p.threshold + 1) >= cohort.session.min_included
    return cohort


def neighbours_of(cohort, name):
    """The names of a client's neighbours."""
    graph = cohort.session.graph(cohort.server._state.graph_seed)
    return [cohort.session.names[i] for i in graph.neighbours(cohort.place(name))]


@pytest.mark.parametrize("spare", [0, 1], ids=["one too few", "just enough"])
def test_question_that_leaves_too_few_of_a_clients_holders(sparse, kit, spare):
    """Enough of the cohort are included, but not enough of those who hold this client's shares."""
    p = sparse.session.parameters
    sparse.until("signatures" if sparse.session.signed else "reveals")
    gone = set(neighbours_of(sparse, ONE)[: p.degree - p.threshold + 1 - spare])
    included = [n for n in sparse.session.names if n not in gone]
    assert len(included) >= sparse.session.min_included
    (answer,) = sparse.tell(ONE, sparse.question(included))
    if spare:
        assert type(answer).__name__ == ("Signed" if sparse.session.signed else "Revealed")
        return
    assert answer == Stop()
    because = f"{p.threshold - 1} neighbours are below the threshold"
    kit.assert_blames_server(sparse.clients[ONE], because)


@pytest.mark.parametrize("spare", [0, 1], ids=["one too few", "just enough"])
def test_server_asks_nobody_when_a_secret_could_not_be_opened(sparse, spare):
    p = sparse.session.parameters
    masked = sparse.down(sparse.until("masked"))
    gone = set(neighbours_of(sparse, ONE)[: p.degree - p.threshold + 1 - spare])
    down = sparse.close_after([e for e in masked if e.sender not in gone])
    if spare:
        sparse.go_on(down)
        assert set(sparse.assert_exact().included) == set(sparse.session.names) - gone
        return
    result = sparse.server.result
    assert isinstance(result, Aborted)
    assert result.stage == "masked"
    assert (
        f"{p.threshold - 1} holders of {ONE}'s shares are left, the threshold is {p.threshold}"
        in result.cause
    )
    assert not result.revealed
    assert result.retry
    sparse.down(down)  # all are told to stop
    for name, client in sparse.clients.items():
        if name not in gone:
            assert isinstance(client.result, Aborted)
            assert client.result.retry


def shortened(roster, left):
    """A roster with this many of those it names."""
    width = 8 * len(roster.present)
    places = [p for p in range(width) if roster.present[p // 8] >> p % 8 & 1][:left]
    present = bitmap(places, width)
    return replace(roster, present=present, advertised=roster.advertised[:left])


@pytest.mark.parametrize("spare", [0, 1], ids=["one too few", "just enough"])
def test_roster_that_leaves_too_few_holders_complete(play, kit, any_model, spare):
    """A client's own share counts: with fewer than the threshold no secret could be shared at all."""
    cohort = play(threat_model=any_model)
    t = cohort.session.parameters.threshold
    for envelope in cohort.until("shares"):
        fewer = shortened(kit.read(envelope), t - 2 + spare)
        check_dealing(
            cohort, kit, envelope, fewer, f"{t - 1} of 8 holders are left, the threshold is {t}", spare
        )


@pytest.mark.parametrize("spare", [0, 1], ids=["one too few", "just enough"])
def test_roster_that_leaves_too_few_holders_sparse(sparse, kit, spare):
    p = sparse.session.parameters
    for envelope in sparse.until("shares")[:5]:
        fewer = shortened(kit.read(envelope), p.threshold - 1 + spare)
        because = f"{p.threshold - 1} of {p.degree} holders are left, the threshold is {p.threshold}"
        check_dealing(sparse, kit, envelope, fewer, because, spare)


def check_dealing(cohort, kit, envelope, fewer, because, spare):
    """Dealt if there are just enough; else stopped: a result, and no exception at the driver."""
    (sent,) = cohort.down([kit.changed(envelope, fewer)])
    if spare:
        assert kit.is_dealt(sent)
        return
    assert kit.read(sent) == Stop()
    result = cohort.clients[envelope.to].result
    assert isinstance(result, Aborted)
    assert result.cause == because
    assert result.culprits == ()
    assert result.retry
