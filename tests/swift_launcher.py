"""Runs OpenStack Swift with its S3 interface in one process; started by s3_server.py, in Swift's own environment.

    python swift_launcher.py FOLDER PORT ACCESS_KEY SECRET_KEY REGION     (an access key is "account:user")

Proxy, account, container and object server share the process. Data and configuration lie in FOLDER and survive a
restart. Prints the S3 port as a line on stdout once it is served, and ends when its standard input does.
"""

import os
import sys
from pathlib import Path

import eventlet
import eventlet.wsgi

eventlet.monkey_patch()

from swift.common.http_protocol import SwiftHttpProtocol  # noqa: E402
from swift.common.ring import RingBuilder  # noqa: E402
from swift.common.utils import NullLogger, set_swift_dir  # noqa: E402
from swift.common.wsgi import loadapp  # noqa: E402

HOST = "127.0.0.1"
PARTITION_POWER = 4
REPLICAS = 1

DEFAULTS = """
[DEFAULT]
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
fallocate_reserve = 0
disable_fallocate = true
log_level = ERROR
"""

BACKEND = """
[app:main]
use = egg:swift#{name}
"""

PROXY = """
[pipeline:main]
pipeline = catch_errors proxy-logging listing_formats bulk s3api tempauth copy slo dlo proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true

[filter:s3api]
use = egg:swift#s3api
location = {region}

[filter:tempauth]
use = egg:swift#tempauth
user_{account}_{user} = {secret_key} .admin

[filter:catch_errors]
use = egg:swift#catch_errors

[filter:proxy-logging]
use = egg:swift#proxy_logging

[filter:listing_formats]
use = egg:swift#listing_formats

[filter:bulk]
use = egg:swift#bulk

[filter:copy]
use = egg:swift#copy

[filter:slo]
use = egg:swift#slo

[filter:dlo]
use = egg:swift#dlo
"""


def write_ring(folder: Path, name: str, port: int) -> None:
    """Writes the ring of a backend: all of its partitions are on the one device of this process."""
    builder = RingBuilder(PARTITION_POWER, REPLICAS, 0)
    builder.add_dev({"region": 1, "zone": 1, "ip": HOST, "port": port, "device": "disk", "weight": 1.0})
    builder.rebalance()
    builder.get_ring().save(str(folder / f"{name}.ring.gz"))


def serve(configuration: Path, listener: eventlet.greenio.GreenSocket) -> None:
    """Starts one of Swift's servers on a socket that listens already."""
    # Swift's own run_server would replace the hub under the other servers; S3 clients want headers as they are.
    eventlet.spawn(
        eventlet.wsgi.server,
        listener,
        loadapp(str(configuration)),
        NullLogger(),
        protocol=SwiftHttpProtocol,
        capitalize_response_headers=False,
    )


def wait_for_end_of_input() -> None:
    """Lets the servers run until the process that holds the other end of stdin closes it, or is gone."""
    while os.read(0, 1024):
        pass


def main(folder: Path, port: int, access_key: str, secret_key: str, region: str) -> None:
    """Serves until standard input ends."""
    (folder / "devices" / "disk").mkdir(parents=True, exist_ok=True)
    (folder / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = tests\n")
    set_swift_dir(str(folder))
    listeners = {name: eventlet.listen((HOST, 0)) for name in ("account", "container", "object")}
    listeners["proxy"] = eventlet.listen((HOST, port), reuse_addr=True)
    for name, listener in listeners.items():
        template = PROXY if name == "proxy" else BACKEND
        account, _, user = access_key.partition(":")
        configuration = folder / f"{name}-server.conf"
        configuration.write_text(
            (DEFAULTS + template).format(
                folder=folder, name=name, account=account, user=user, secret_key=secret_key, region=region
            )
        )
        if name != "proxy":
            write_ring(folder, name, listener.getsockname()[1])
        serve(configuration, listener)
    print(listeners["proxy"].getsockname()[1], flush=True)
    wait_for_end_of_input()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5])
