"""Publishes on a channel of Redis with stock `redis` from PyPI, as a backend does that knows nothing of throng.

    python publish.py redis://HOST:PORT CHANNEL TEXT

Prints how many subscribers have got it.
"""

import json
import sys

import redis

url, channel, said = sys.argv[1:]
print(redis.Redis.from_url(url).publish(channel, json.dumps({"said": said})))
