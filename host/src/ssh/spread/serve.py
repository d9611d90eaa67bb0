# Serves one file to whoever names the token: serve.py ADDRESS PORT FILE SECONDS, the token on standard input.
# Ends when standard input ends, which is also when the connection that started it does, and after SECONDS.
import hmac, os, signal, socket, sys, threading

address, port, path, seconds = sys.argv[1:]
signal.alarm(int(seconds))
token = sys.stdin.buffer.readline().strip()
if len(token) < 32:
    sys.exit("no token")
content = open(path, "rb")
try:
    listener = socket.create_server((address, int(port)), backlog=64)
except OSError as error:
    sys.exit("listen on %s:%s: %s" % (address, port, error))
slots = threading.Semaphore(64)


def serve(peer):
    try:
        with peer:
            peer.settimeout(10)
            said = b""
            while len(said) < len(token):
                more = peer.recv(len(token) - len(said))
                if not more:
                    return
                said += more
            if hmac.compare_digest(said, token):
                peer.sendfile(content)
    except OSError:
        pass  # The other side is told by what is missing.
    finally:
        slots.release()


def accept():
    while True:
        slots.acquire()
        threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()


threading.Thread(target=accept, daemon=True).start()
print("ready", flush=True)
sys.stdin.buffer.read()
os._exit(0)
