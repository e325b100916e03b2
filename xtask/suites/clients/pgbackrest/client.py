"""pgBackRest reading one object of a repository, for `cargo xtask clients`.

client.py pgbackrest COUNT    for each line of its input, each process reads the object

Each turn is a new process: pgBackRest has no other way to forget its credentials. It speaks TLS
only, so TLS ends here, in front of the stand-in for S3.
"""

import concurrent.futures
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import urllib.parse

S3 = urllib.parse.urlsplit(os.environ["KIAM_S3_URL"])
REGION = os.environ["AWS_REGION"]
LIMIT = 60


def certificate(folder):
    """A certificate, which no client checks."""
    key, cert = os.path.join(folder, "key.pem"), os.path.join(folder, "cert.pem")
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    make += ["-nodes", "-days", "1", "-subj", "/CN=s3", "-keyout", key, "-out", cert]
    subprocess.run(make, check=True, capture_output=True, timeout=LIMIT)
    return cert, key


def copy(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def relay(accepted, context):
    try:
        with accepted, context.wrap_socket(accepted, server_side=True) as client:
            with socket.create_connection((S3.hostname, S3.port), timeout=LIMIT) as server:
                threading.Thread(target=copy, args=(client, server), daemon=True).start()
                copy(server, client)
    except OSError:
        pass


def end_tls(folder):
    """The port on which TLS ends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(folder))
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)

    def accept():
        while True:
            accepted, _ = listener.accept()
            threading.Thread(target=relay, args=(accepted, context), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener.getsockname()[1]


def turn(port):
    """Error message, in one line."""
    options = {
        "log-level-console": "error",
        "log-level-file": "off",
        "repo1-type": "s3",
        "repo1-path": "/",
        "repo1-s3-bucket": "bucket",
        "repo1-s3-endpoint": f"s3.{REGION}.amazonaws.com",
        "repo1-s3-region": REGION,
        "repo1-s3-key-type": "auto",
        "repo1-s3-uri-style": "path",
        "repo1-storage-host": "127.0.0.1",
        "repo1-storage-port": str(port),
    }
    command = ["pgbackrest", "--no-config", *(f"--{name}={value}" for name, value in options.items())]
    command += ["--no-repo1-storage-verify-tls", "repo-get", "/object"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired as error:
        return str(error)
    message = done.stderr.strip() or done.stdout.strip()
    return "" if done.returncode == 0 else " ".join(message.split()) or f"exit {done.returncode}"


count = int(sys.argv[2])
with tempfile.TemporaryDirectory() as folder:
    ports = [end_tls(folder)] * count
with concurrent.futures.ThreadPoolExecutor(count) as pool:
    for _ in iter(sys.stdin.readline, ""):
        errors = [error for error in pool.map(turn, ports) if error]
        print("done", count - len(errors), *errors[:1], flush=True)
