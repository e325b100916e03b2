"""Clients whose only credentials are those that their SDK finds, for `cargo xtask clients`.

client.py NAME COUNT    for each line of its input, each client signs one request

Clients of botocore are a process each, made by fork after the import; the others share one.
"""

import concurrent.futures
import datetime
import os
import subprocess
import sys
import urllib.error
import urllib.request

STS, S3 = os.environ["KIAM_STS_URL"], os.environ["KIAM_S3_URL"]


class Boto3:
    processes = True

    def __init__(self):
        import boto3

        self.session = boto3.Session()
        self.service = None

    @staticmethod
    def load():
        import boto3

        # Reads the SDK's descriptions, which is most of the cost of a process.
        boto3.Session(aws_access_key_id="x", aws_secret_access_key="x").client("sts")

    def forget(self):
        keys = self.session.get_credentials()
        keys._expiry_time = datetime.datetime.now(datetime.timezone.utc)

    def sign(self):
        if self.service is None:
            self.service = self.session.client("sts", endpoint_url=STS)
        self.service.get_caller_identity()


class Cli:
    """Starts a new process of the CLI each time, as users do."""

    processes = True

    @staticmethod
    def load():
        import awscli.clidriver  # noqa: F401

    def forget(self):
        pass

    def sign(self):
        import awscli.clidriver

        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(write, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            args = ["sts", "get-caller-identity", "--endpoint-url", STS]
            os._exit(awscli.clidriver.create_clidriver().main(args))
        os.close(write)
        with os.fdopen(read) as errors:
            text = errors.read()
        if os.waitpid(child, 0)[1] != 0:
            raise RuntimeError(text)


class Awscrt:
    processes = False

    def __init__(self):
        self.forget()

    def forget(self):
        from awscrt.auth import AwsCredentialsProvider

        # Only a new provider forgets them.
        self.provider = AwsCredentialsProvider.new_default_chain()

    def sign(self):
        from awscrt.auth import (
            AwsSignatureType,
            AwsSigningAlgorithm,
            AwsSigningConfig,
            aws_sign_request,
        )
        from awscrt.http import HttpHeaders, HttpRequest

        path = "/?Action=GetCallerIdentity&Version=2011-06-15"
        headers = HttpHeaders([("host", STS.removeprefix("http://"))])
        config = AwsSigningConfig(
            algorithm=AwsSigningAlgorithm.V4,
            signature_type=AwsSignatureType.HTTP_REQUEST_HEADERS,
            credentials_provider=self.provider,
            region=os.environ["AWS_REGION"],
            service="sts",
        )
        request = aws_sign_request(HttpRequest("GET", path, headers), config).result(60)
        send = urllib.request.Request(STS + path, headers=dict(request.headers))
        try:
            urllib.request.urlopen(send, timeout=60).read()
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()) from error


class Files:
    """A client that reads an object, and forgets its credentials with its file system."""

    processes = False

    def __init__(self):
        self.files = None

    def forget(self):
        self.files = None

    def sign(self):
        if self.files is None:
            self.files = self.open()
        self.read()


class Pyarrow(Files):
    def open(self):
        from pyarrow.fs import S3FileSystem

        host = S3.removeprefix("http://")
        return S3FileSystem(region=os.environ["AWS_REGION"], scheme="http", endpoint_override=host)

    def read(self):
        with self.files.open_input_file("bucket/object") as file:
            file.read()


class Opendal(Files):
    def open(self):
        import opendal

        region = os.environ["AWS_REGION"]
        return opendal.Operator("s3", bucket="bucket", endpoint=S3, region=region)

    def read(self):
        self.files.read("object")


class Clickhouse:
    """Starts a new process each time: only that makes the engine forget its credentials."""

    processes = False
    program = """
import sys, chdb
print(chdb.query(f"SELECT count() FROM s3('{sys.argv[1]}/bucket/object', 'LineAsString')"))
"""

    def forget(self):
        pass

    def sign(self):
        command = [sys.executable, "-c", self.program, S3]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])


CLIENTS = {
    "cli": Cli,
    "boto3": Boto3,
    "awscrt": Awscrt,
    "pyarrow": Pyarrow,
    "opendal": Opendal,
    "clickhouse": Clickhouse,
}


def turn(client, number):
    """Error message, in one line."""
    try:
        if number > 0:
            client.forget()
        client.sign()
        return ""
    except BaseException as error:
        return " ".join(f"{type(error).__name__}: {error}".split())


def say(errors):
    failed = [error for error in errors if error]
    print("done", len(errors) - len(failed), failed[0] if failed else "", flush=True)


def threads(made, count):
    clients = [made() for _ in range(count)]
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        for number, _ in enumerate(iter(sys.stdin.readline, "")):
            say(list(pool.map(lambda client: turn(client, number), clients)))


def processes(made, count):
    made.load()
    pipes = []
    for _ in range(count):
        (its_input, order), (answer, its_output) = os.pipe(), os.pipe()
        if os.fork() == 0:
            os.close(order)
            for other, _ in pipes:
                os.close(other)
            client = made()
            with os.fdopen(its_input) as orders, os.fdopen(its_output, "w") as answers:
                for number, _ in enumerate(iter(orders.readline, "")):
                    print(turn(client, number), file=answers, flush=True)
            os._exit(0)
        os.close(its_input)
        os.close(its_output)
        pipes.append((order, os.fdopen(answer)))
    for _ in iter(sys.stdin.readline, ""):
        for order, _ in pipes:
            os.write(order, b"\n")
        say([answer.readline().strip() for _, answer in pipes])


made = CLIENTS[sys.argv[1]]
(processes if made.processes else threads)(made, int(sys.argv[2]))
