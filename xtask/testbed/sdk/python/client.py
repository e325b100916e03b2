"""A client that knows nothing of credentials but what the SDK finds, for kiam's tests.

client.py who         prints who it is to STS, once
client.py contract    reads times, and prints for each the key that it would sign with
"""

import datetime
import sys

import boto3
import botocore.utils

if sys.argv[1] == "who":
    print(boto3.client("sts").get_caller_identity()["Arn"])
else:
    moved = [datetime.datetime.now(datetime.timezone.utc)]
    # The SDK's clocks: of the fetcher, and below of the credentials themselves.
    botocore.utils.get_current_datetime = lambda *_: moved[0].replace(tzinfo=None)
    session, keys = boto3.Session(), None
    for line in sys.stdin:
        moved[0] = datetime.datetime.fromtimestamp(int(line), datetime.timezone.utc)
        try:
            if keys is None:
                keys = session.get_credentials()
                if keys is None:
                    print("error there are no credentials", flush=True)
                    continue
                keys._time_fetcher = lambda: moved[0]
            print("key", keys.get_frozen_credentials().access_key, flush=True)
        except Exception as error:
            print("error", str(error).replace("\n", " "), flush=True)
