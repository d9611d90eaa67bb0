# Prints the file that serve.py serves: fetch.py ADDRESS PORT BYTES, the token on standard input.
# What comes is not checked here, only never more than BYTES.
import socket, sys

address, port, left = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
try:
    with socket.create_connection((address, port), 3) as peer:
        peer.settimeout(15)
        peer.sendall(sys.stdin.buffer.readline().strip())
        while left:
            part = peer.recv(min(left, 65536))
            if not part:
                sys.exit("%s:%s ended %s bytes too early" % (address, port, left))
            sys.stdout.buffer.write(part)
            left -= len(part)
except OSError as error:
    sys.exit("%s:%s: %s" % (address, port, error))
