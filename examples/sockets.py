"""Two processes, plain sockets, no framework: what it takes to carry the protocol over a transport.

    python examples/sockets.py

starts a server process and a process with four clients, and prints the sum that the server got. An
envelope travels as its length (8 bytes) and its bytes. There is no TLS here, so nothing vouches for who
is at the other end: a real deployment must authenticate its peers.
"""

import multiprocessing
import socket
import struct
from contextlib import ExitStack, suppress
from threading import Thread

from secagg import (
    Identity,
    Input,
    Received,
    RemoteError,
    Session,
    StageClosed,
    Started,
    from_bytes_checked,
    to_bytes,
)

VECTORS = {"oslo": [1, 2, 3], "pisa": [4, 5, 6], "graz": [7, 8, 9], "york": [10, 11, 12]}
TIMEOUT = 10.0


def send(connection, envelope):
    data = to_bytes(envelope)
    connection.sendall(struct.pack("<Q", len(data)) + data)


def receive(connection, session):
    def exactly(count):
        data = b""
        while len(data) < count:
            piece = connection.recv(count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    (length,) = struct.unpack("<Q", exactly(8))
    if length > session.max_envelope_bytes:
        raise OSError(f"an envelope of {length} bytes is announced")
    return from_bytes_checked(exactly(length), session.max_envelope_bytes)


def serve(listener, session, done):
    with ExitStack() as stack:
        result = run_server(listener, session, stack)
    done.send((result.sum.tolist(), result.included))


def run_server(listener, session, stack):
    server, connections = session.server(), {}
    listener.settimeout(TIMEOUT)
    for _ in session.names:  # a real server would go on without those who never call
        connection = stack.enter_context(listener.accept()[0])
        connection.settimeout(TIMEOUT)
        first = receive(connection, session)
        connections[first.sender] = connection
        outbox = server.handle(Received(first))
    while server.result is None:
        stage = server.stage
        for envelope in outbox:
            send(connections[envelope.to], envelope)
        outbox = []
        for name in server.waiting_for:
            with suppress(OSError, EOFError, RemoteError):  # gone: the stage closes without it
                outbox += server.handle(Received(receive(connections[name], session)))
        outbox += server.handle(StageClosed(stage))
    return server.result


def take_part(address, session, name, identity):
    client = session.client(name, identity)
    with socket.create_connection(address, TIMEOUT) as connection:
        outbox = client.handle(Started()) + client.handle(Input(VECTORS[name]))
        while True:
            for envelope in outbox:
                send(connection, envelope)
            if client.result is not None:
                return
            outbox = client.handle(Received(receive(connection, session)))


def main():
    identities = {name: Identity.generate() for name in VECTORS}
    session = Session({name: i.public for name, i in identities.items()}, dim=3, bound=1000)
    ours, theirs = multiprocessing.Pipe()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = multiprocessing.get_context("fork").Process(target=serve, args=(listener, session, theirs))
        process.start()
        address = listener.getsockname()
        clients = [
            Thread(target=take_part, args=(address, session, n, i), daemon=True)
            for n, i in identities.items()
        ]
        for client in clients:
            client.start()
        total, included = ours.recv() if ours.poll(60) else ([], ())
        process.join(TIMEOUT)
    print(f"sum {total} of {', '.join(included)}")


if __name__ == "__main__":
    main()
