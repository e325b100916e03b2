"""Mounts of s3fs in a mount namespace of this process, for `cargo xtask clients`.

client.py s3fs COUNT    for each line of its input, each mount reads one object

A turn mounts anew: s3fs has no other way to forget its credentials.
"""

import concurrent.futures
import os
import subprocess
import sys
import tempfile

S3 = os.environ["KIAM_S3_URL"]
LIMIT = 60


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]}: {done.stderr.strip() or done.stdout.strip()}")


def turn(folder):
    """Error message, in one line."""
    options = f"iam_role=auto,url={S3},endpoint={os.environ['AWS_REGION']},use_path_request_style"
    if "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI" in os.environ:
        options = options.replace("iam_role=auto", "ecs")
    log = os.path.join(folder, "log")
    mount = os.path.join(folder, "mount")
    os.makedirs(mount, exist_ok=True)
    try:
        run("s3fs", "bucket", mount, "-o", f"{options},logfile={log},retries=2")
        run("cat", os.path.join(mount, "object"))
        return ""
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        text = open(log, encoding="utf-8").read() if os.path.exists(log) else ""
        wrong = [line for line in text.splitlines() if "[ERR]" in line or "[CRT]" in line]
        return " ".join(f"{error}; {'; '.join(wrong[-2:])}".split())
    finally:
        # A file system that could not be mounted is missing.
        subprocess.run(["umount", mount], capture_output=True, timeout=LIMIT)


with tempfile.TemporaryDirectory() as parent:
    folders = [os.path.join(parent, str(number)) for number in range(int(sys.argv[2]))]
    for folder in folders:
        os.mkdir(folder)
    with concurrent.futures.ThreadPoolExecutor(len(folders)) as pool:
        for _ in iter(sys.stdin.readline, ""):
            errors = [error for error in pool.map(turn, folders) if error]
            print("done", len(folders) - len(errors), *errors[:1], flush=True)
