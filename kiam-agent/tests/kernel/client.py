"""What a process in a pod does: one attempt to reach an address, reported as one line of JSON.

The first argument names the attempt, the others are its own.
"""
import errno
import json
import os
import select
import socket
import struct
import sys
import time

METADATA = "169.254.169.254"
# The first pod of a node.
POD = "10.101.0.1"
MPTCP = 262
# How much longer than usual an answer is waited for, on a slow machine.
PATIENCE = int(os.environ.get("KIAM_TEST_PATIENCE", "1"))


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def report(**what):
    print(json.dumps(what), flush=True)


def receive(sock):
    report(
        peer=sock.getpeername()[:2],
        local=sock.getsockname()[:2],
        received=sock.recv(100).decode(),
    )


def tcp(address, port, *options):
    """Connects, and reports whom it believes to talk to and what it received."""
    protocol = MPTCP if "mptcp" in options else 0
    sock = socket.socket(family(address), socket.SOCK_STREAM, protocol)
    sock.settimeout(4 * PATIENCE)
    for option in options:
        if option.startswith("from="):
            source, source_port = option[5:].rsplit(",", 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((source, int(source_port)))
        if option.startswith("timeout="):
            sock.settimeout(float(option[8:]))
    if "fastopen" in options:
        # Without blocking it would only begin.
        sock.settimeout(None)
        sock.sendto(b"x", 0x20000000, (address, int(port)))
    else:
        sock.connect((address, int(port)))
    receive(sock)


def attempt(address, port):
    """Connects, and returns the name of the error."""
    with socket.socket(family(address), socket.SOCK_STREAM) as sock:
        sock.settimeout(0.2 * PATIENCE)
        return errno.errorcode.get(sock.connect_ex((address, int(port))), "none")


def tcp_until_closed(address, port):
    """Connects again and again, with a line after each attempt, until the input is closed.

    Reports all errors.
    """
    errors = set()
    # Fewer than a pod's quota, 256 in 10 s.
    while not select.select([sys.stdin], [], [], 0.05)[0]:
        errors.add(attempt(address, port))
        print("attempted", flush=True)
    report(error=" ".join(sorted(errors)))


def tcp_times(address, port, times):
    """Connects so many times, and reports all errors."""
    errors = {attempt(address, port) for _ in range(int(times))}
    report(error=" ".join(sorted(errors)))


def leave(address, port):
    """Connects and goes away."""
    sock = socket.socket(family(address), socket.SOCK_STREAM)
    sock.settimeout(4 * PATIENCE)
    sock.connect((address, int(port)))
    report(local=sock.getsockname()[:2])
    os._exit(0)


def flood(address, port, times):
    """Begins connections, and gives each up at once."""
    for _ in range(int(times)):
        sock = socket.socket(family(address), socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.connect_ex((address, int(port)))
        sock.close()
    report()


def udp(address, port):
    socket.socket(family(address), socket.SOCK_DGRAM).sendto(b"x", (address, int(port)))
    report()


def udp_connect(address, port):
    sock = socket.socket(family(address), socket.SOCK_DGRAM)
    sock.connect((address, int(port)))
    sock.send(b"x")
    report()


def udp_refused(address, port):
    """Sends, and waits for the refusal to come back."""
    sock = socket.socket(family(address), socket.SOCK_DGRAM)
    sock.settimeout(2 * PATIENCE)
    sock.connect((address, int(port)))
    sock.send(b"x")
    sock.recv(1)


def ping(address, _):
    """An ICMP echo request by a raw socket, of the address's own family."""
    if ":" in address:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        sock.sendto(struct.pack("!BBHHH", 128, 0, 0, 1, 1), (address, 0))
    else:
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        sock.sendto(struct.pack("!BBHHH", 8, 0, 0xF7FD, 1, 1), (address, 0))
    report()


def sum16(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def syn(source, source_port, target, target_port):
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    header = lambda check: struct.pack(
        "!HHIIBBHHH", int(source_port), int(target_port), 1, 0, 5 << 4, 2, 64240, check, 0
    )
    checked = header(sum16(addresses + struct.pack("!BBH", 0, 6, 20) + header(0)))
    return struct.pack("!BBHHHBBH", 0x45, 0, 40, 1, 0, 64, 6, 0) + addresses + checked


def forge(source, source_port, target, target_port):
    """A SYN made by hand, with whatever source, by a raw socket that gives the IP header too."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    sock.sendto(syn(source, source_port, target, target_port), (target, 0))
    report()


def forge_to(target, target_port):
    forge(POD, 40000, target, target_port)


def frame(gateway, target, port):
    """A UDP datagram to the target, in an Ethernet frame made by hand: below all sockets."""
    # A datagram makes the kernel resolve the neighbor's address.
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", (gateway, 9))
    for _ in range(100):
        lines = [line.split() for line in open("/proc/net/arp")]
        found = [line[3] for line in lines if line[0] == gateway and line[2] == "0x2"]
        if found:
            break
        time.sleep(0.02)
    payload = b"frame"
    header = lambda check: struct.pack("!HHHH", 40000, int(port), 8 + len(payload), check)
    if ":" in target:
        kind = 0x86DD
        probe = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        probe.connect((target, int(port)))
        source = socket.inet_pton(socket.AF_INET6, probe.getsockname()[0])
        addresses = source + socket.inet_pton(socket.AF_INET6, target)
        length = 8 + len(payload)
        checked = addresses + struct.pack("!II", length, 17) + header(0) + payload
        check = sum16(checked + b"\0" * (len(checked) % 2))
        packet = struct.pack("!IHBB", 6 << 28, length, 17, 64) + addresses
        packet += header(check) + payload
    else:
        kind = 0x0800
        probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        probe.connect((target, int(port)))
        source = socket.inet_aton(probe.getsockname()[0])
        addresses = source + socket.inet_aton(target)
        ip = lambda check: struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(payload), 1, 0, 64, 17, check)
        packet = ip(sum16(ip(0) + addresses)) + addresses + header(0) + payload
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.bind(("eth0", kind))
    own = sock.getsockname()[4]
    sock.send(bytes.fromhex(found[0].replace(":", "")) + own + struct.pack("!H", kind) + packet)
    report()


def source_route(hop, port):
    """A packet to a hop, that asks it to send it on to the metadata service."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    options = struct.pack("!BBB4sB", 131, 7, 4, socket.inet_aton(METADATA), 0)
    addresses = socket.inet_aton(POD) + socket.inet_aton(hop)
    header = struct.pack("!BBHHHBBH", 0x47, 0, 36, 1, 0, 64, 17, 0) + addresses + options
    sock.sendto(header + struct.pack("!HHHH", 40000, int(port), 8, 0), (hop, 0))
    report()


def options(hop, port):
    """Packets to a hop with the metadata service at each place in their options, and with none.

    Counts those with it that leave, and fails where one without does not.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    addresses = socket.inet_aton(POD) + socket.inet_aton(hop)
    datagram = struct.pack("!HHHH", 40000, int(port), 8, 0)
    no_operation, metadata = b"\x01", socket.inet_aton(METADATA)

    def send(options):
        header = struct.pack("!BBHHHBBH", 0x45 + len(options) // 4, 0, 0, 1, 0, 64, 17, 0)
        sock.sendto(header + addresses + options + datagram, (hop, 0))

    left = 0
    for size in range(4, 44, 4):
        send(no_operation * size)
        for start in range(size - 3):
            try:
                send(no_operation * start + metadata + no_operation * (size - start - 4))
                left += 1
            except PermissionError:
                pass
    report(count=left)


def sniff(marker):
    """Counts the packets to the metadata service that arrive here, until the marker does."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.ntohs(3))
    report()
    v6 = socket.inet_pton(socket.AF_INET6, "fd00:ec2::254")
    count = 0
    while True:
        packet = sock.recv(2048)
        if packet[:1] and packet[0] >> 4 == 4:
            length = (packet[0] & 15) * 4
            routed = socket.inet_aton(METADATA) in packet[20:length]
            count += packet[16:20] == socket.inet_aton(METADATA) or routed
            if packet[9] == 17 and packet[length + 2 : length + 4] == struct.pack("!H", int(marker)):
                break
        elif len(packet) >= 40 and packet[0] >> 4 == 6:
            count += packet[24:40] == v6
    report(count=count)


try:
    globals()[sys.argv[1]](*sys.argv[2:])
except OSError as error:
    name = "timeout" if isinstance(error, TimeoutError) else None
    import errno

    report(error=name or errno.errorcode.get(error.errno, str(error)))
