"""Fetching pictures from a server that misbehaves in every known way, and knows what each is to end in."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imagebert.errors import UsageError
from imagebert.lait import fetch
from imagebert.lait.fetch import KINDS, FetchLimits, Wanted, fetch_shard
from imagebert.lait.shards import Row, read_rows
from imagebert.regions.tar_pictures import list_tar
from tests.lait.hostile import OR_ELSE, WAYS, Hostile, fits, hostile_server, key_of, picture

ROOT = Path(__file__).parents[2]
# So that nothing here waits: hosts are not asked politely, and one that fails is asked again.
LIMITS = FetchLimits(
    seconds=3.0,
    picture_bytes=2 << 20,
    per_host=100,
    pause=0.0,
    retry_seconds=1.0,
    host_failures=10_000,
    allow_private=True,
)


@pytest.fixture
def server() -> Iterator[Hostile]:
    with hostile_server() as running:
        yield running


def wanted_of(server: Hostile, ways: Sequence[str], hosts: int = 1) -> list[Wanted]:
    return [
        Wanted(key_of(number), server.url(way, f"{number}", f"127.0.1.{1 + number % hosts}"))
        for number, way in enumerate(ways)
    ]


def status_of(url: str, tmp_path: Path, limits: FetchLimits = LIMITS, blocked: Sequence[str] = ()) -> Row:
    """What becomes of one picture."""
    shard = tmp_path / f"{key_of(url)}.tar"
    fetch_shard([Wanted(key_of(url), url)], shard, limits, blocked)
    (row,) = read_rows(shard)
    return row


def in_tar(shard: Path) -> dict[str, bytes]:
    with tarfile.open(shard) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def test_each_way_to_misbehave_has_its_kind_and_all_good_pictures_arrive(server: Hostile, tmp_path: Path) -> None:
    ways = [*WAYS] * 2
    wanted = wanted_of(server, ways, 3)
    shard = tmp_path / "00000.tar"
    counted = fetch_shard(wanted, shard, LIMITS)
    rows = read_rows(shard)
    assert [(row.key, row.url) for row in rows] == wanted
    wrong = {(way, row.status) for way, row in zip(ways, rows, strict=True) if not fits(way, row.status)}
    assert wrong == set()
    assert sum(counted.values()) == len(wanted)
    assert counted["success"] == sum(WAYS[way] == "success" for way in ways)
    files = in_tar(shard)
    names = iter(files)
    for number, (way, row) in enumerate(zip(ways, rows, strict=True)):
        assert (row.error_message is None) == (row.status == "success")
        if row.status != "success":
            continue
        form = way if way in ("png", "webp", "gif", "avif") else "jpeg"
        data = picture(way if way in ("far", form) else "jpeg", str(number))
        suffix = "jpg" if form == "jpeg" else form
        assert [next(names), next(names)] == [f"{row.key}.{suffix}", f"{row.key}.json"]
        assert files[f"{row.key}.{suffix}"] == data
        assert Image.open(io.BytesIO(data)).size == (row.width, row.height)
        assert (row.bytes, row.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        told = json.loads(files[f"{row.key}.json"])
        assert {name: told[name] for name in ("url", "sha256", "width", "height", "bytes")} == {
            name: getattr(row, name) for name in ("url", "sha256", "width", "height", "bytes")
        }
    assert next(names, None) is None
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["00000.parquet", "00000.tar"]


def test_the_list_of_kinds_is_closed_and_each_is_met() -> None:
    elsewhere = {"blocked", "private_address", "dns_failed", "connection_failed", "tls_failed"}
    elsewhere |= {"robots_unreachable", "host_given_up"}
    assert {*WAYS.values()} | elsewhere == set(KINDS)


def test_regions_are_extracted_from_a_shard_as_it_is(server: Hostile, tmp_path: Path) -> None:
    fetch_shard(wanted_of(server, ["webp", "missing", "jpeg"]), tmp_path / "0.tar", LIMITS)
    listing = list_tar(tmp_path / "0.tar")
    assert [(p.key, p.suffix) for p in listing.pictures] == [(key_of(0), "webp"), (key_of(2), "jpg")]
    assert not listing.others


def test_who_comes_first_changes_no_byte(server: Hostile, tmp_path: Path) -> None:
    ways = [way for way, status in WAYS.items() if status != "timed_out" and way not in OR_ELSE] * 3
    server.delay = 0.05
    shards = []
    for name in ("a", "b"):
        server.asked.clear()
        shard = tmp_path / name / "00000.tar"
        shard.parent.mkdir()
        fetch_shard(wanted_of(server, ways, 7), shard, LIMITS)
        shards.append([shard.read_bytes(), shard.with_suffix(".parquet").read_bytes()])
    assert shards[0] == shards[1]


def test_what_a_server_sends_too_much_is_not_the_next_pictures(server: Hostile, tmp_path: Path) -> None:
    ways = ["says_less", "jpeg", "says_less", "png"]
    fetch_shard(wanted_of(server, ways), tmp_path / "0.tar", replace(LIMITS, per_host=1))
    assert [row.status for row in read_rows(tmp_path / "0.tar")][1::2] == ["success", "success"]


def test_a_shard_that_is_there_is_not_fetched_again(server: Hostile, tmp_path: Path) -> None:
    wanted, shard = wanted_of(server, ["jpeg", "missing"]), tmp_path / "0.tar"
    counted = fetch_shard(wanted, shard, LIMITS)
    asked = server.pictures()
    assert fetch_shard(wanted, shard, LIMITS) == counted == {"success": 1, "http_status": 1}
    assert server.pictures() == asked
    with pytest.raises(UsageError, match="holds other pictures than are wanted"):
        fetch_shard(wanted[:1], shard, LIMITS)
    fetch_shard(wanted, shard, replace(LIMITS, seconds=4.0))  # other limits, perhaps of a call that was killed
    assert server.pictures() == asked + asked


def test_what_may_come_another_time_is_asked_for_again(server: Hostile, tmp_path: Path) -> None:
    ways, shard = ["jpeg", "missing", "png"], tmp_path / "0.tar"
    wanted = [Wanted(key_of(n), server.url(way, f"{n}", f"127.0.1.{n // 2}")) for n, way in enumerate(ways)]
    server.robots["127.0.1.1"] = "broken"
    before = {"success": 1, "http_status": 1, "robots_unreachable": 1}
    assert fetch_shard(wanted, shard, LIMITS) == before
    del server.robots["127.0.1.1"]
    assert fetch_shard(wanted, shard, LIMITS) == before
    first, whole = in_tar(shard), shard.read_bytes()
    assert fetch_shard(wanted, shard, LIMITS, again=True) == {"success": 2, "http_status": 1}
    assert server.pictures() == {f"/{way}/{n}": 1 for n, way in enumerate(ways)}
    assert first.items() <= in_tar(shard).items()
    at_once = tmp_path / "1.tar"
    fetch_shard(wanted, at_once, LIMITS)
    assert shard.read_bytes() == at_once.read_bytes() != whole
    asked = server.pictures()
    fetch_shard(wanted, shard, LIMITS, again=True)  # nothing is left that may come
    assert server.pictures() == asked


@pytest.mark.parametrize(
    ("key", "sentence"), [("0" * 15, "is no key"), ("0" * 15 + "/", "is no key"), ("0" * 16, "comes twice")]
)
def test_keys_are_names_of_files(key: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        fetch_shard([Wanted(key, "http://a.test/"), Wanted(key, "http://a.test/")], tmp_path / "0.tar")


@pytest.mark.parametrize("name", ["seconds", "connections", "pause", "aspect"])
def test_limits_are_numbers_that_make_sense(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        replace(LIMITS, **{name: -1})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=name):
        replace(LIMITS, **{name: float("nan")})  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- where nobody may go


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/jpeg/1",
        "http://2130706433:{port}/jpeg/1",
        "http://0x7f.1:{port}/jpeg/1",
        "http://127.1:{port}/jpeg/1",
        "http://0:{port}/jpeg/1",
        "http://[::ffff:127.0.0.1]:{port}/jpeg/1",
        "http://[::1]:{port}/jpeg/1",
        "http://[64:ff9b::7f00:1]:{port}/jpeg/1",
        "http://localhost:{port}/jpeg/1",
        "http://169.254.169.254/latest/meta-data",
    ],
)
def test_by_default_no_address_but_a_public_one_is_asked(url: str, server: Hostile, tmp_path: Path) -> None:
    row = status_of(url.format(port=server.port), tmp_path, replace(LIMITS, allow_private=False))
    assert row.status in ("private_address", "bad_url")
    assert not server.asked


def test_a_name_that_means_another_address_a_moment_later_leads_nowhere_else(
    server: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Public at every look-up but those that count, and public beside private."""
    answers = {"rebinds.test": [["127.0.0.1"]], "both.test": [["127.0.0.1", "10.0.0.1"]]}
    monkeypatch.setattr(socket, "getaddrinfo", resolver({name: found[0] for name, found in answers.items()}))
    for name in answers:
        row = status_of(f"http://{name}:{server.port}/jpeg/1", tmp_path, replace(LIMITS, allow_private=False))
        assert row.status == "private_address"
    assert not server.asked


def test_a_redirect_is_checked_like_the_first_url(
    server: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first host counts as public here; where it sends to does not."""
    from imagebert.lait import web

    monkeypatch.setattr(web, "is_public", lambda address: address == "127.0.0.1")
    limits = replace(LIMITS, allow_private=False)
    assert status_of(server.url("jpeg", "1"), tmp_path, limits).status == "success"
    assert status_of(server.url("redirected", "2"), tmp_path, limits).status == "success"
    assert status_of(server.url("redirected_far", "3"), tmp_path, limits).status == "private_address"
    assert not server.asked["/jpeg/3"]


def resolver(hosts: dict[str, list[str]]) -> Any:
    """getaddrinfo for these hosts; others have no address."""

    def look_up(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        if host not in hosts:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in hosts[host]]

    return look_up


def test_names_without_an_address_and_closed_ports(
    server: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolver({"a.test": ["127.0.0.1"]}))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = unused.getsockname()[1]
        kinds = {
            f"http://a.test:{server.port}/jpeg/1": "success",
            "http://gone.test/1.jpg": "dns_failed",
            f"http://{'a' * 64}.test/1.jpg": "dns_failed",
            f"http://a.test:{closed}/1.jpg": "connection_failed",
        }
        for url, kind in kinds.items():
            assert (url, status_of(url, tmp_path).status) == (url, kind)


def certified(tmp_path: Path) -> ssl.SSLContext:
    """TLS with a certificate that nobody signed."""
    pem = tmp_path / "own.pem"
    words = "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    try:
        subprocess.run(
            ["openssl", *words.split(), "-keyout", str(pem), "-out", f"{pem}.crt"], check=True, capture_output=True
        )
    except FileNotFoundError:
        pytest.skip("there is no openssl to make a certificate")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{pem}.crt", pem)
    return context


@pytest.mark.parametrize(("speaks", "kind"), [("own", "tls_failed"), ("plain", "tls_failed"), ("", "timed_out")])
def test_hosts_that_are_not_to_be_trusted(speaks: str, kind: str, tmp_path: Path) -> None:
    context = certified(tmp_path) if speaks == "own" else None
    with socket.create_server(("127.0.0.1", 0)) as listening:
        kept = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                    kept.append(connection)
                    if context is not None:
                        context.wrap_socket(connection, server_side=True).close()
                    elif speaks:
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                except OSError:
                    if listening.fileno() < 0:
                        return

        threading.Thread(target=serve, daemon=True).start()
        limits = replace(LIMITS, seconds=0.5, follow_robots=False)
        assert status_of(f"https://127.0.0.1:{listening.getsockname()[1]}/1.jpg", tmp_path, limits).status == kind


@pytest.mark.parametrize(
    "url",
    [
        "",
        "photo.jpg",
        "//a.test/1.jpg",
        "ftp://a.test/1.jpg",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "http://",
        "http:///1.jpg",
        "http://me:secret@a.test/1.jpg",
        "http://me@a.test/1.jpg",
        "http://a.test:99999/1.jpg",
        "http://[::1/1.jpg",
        "http://a.test/" + "x" * 5000,
    ],
)
def test_urls_that_nobody_asks(url: str, tmp_path: Path) -> None:
    assert status_of(url, tmp_path).status == "bad_url"


def test_blocked_hosts_and_those_below_are_never_asked(server: Hostile, tmp_path: Path) -> None:
    row = status_of(server.url("jpeg", "1", "127.0.0.1"), tmp_path, blocked=["0.0.1", "other.test"])
    assert (row.status, sum(server.asked.values())) == ("blocked", 0)
    # A redirect's, too.
    row = status_of(server.url("redirected_far", "1"), tmp_path, blocked=["127.9.9.9"])
    assert (row.status, server.asked["/jpeg/1"]) == ("blocked", 0)
    assert status_of(server.url("jpeg", "2"), tmp_path, blocked=["27.0.0.1"]).status == "success"


# ---------------------------------------------------------------------------------------------------------- politeness


def test_robots_are_asked_once_for_a_host_and_followed(server: Hostile, tmp_path: Path) -> None:
    server.robots |= {"127.0.1.1": None, "127.0.1.2": b"User-agent: imagebert\nDisallow: /jpeg/\n"}
    server.robots |= {"127.0.1.3": "broken", "127.0.1.4": "silent", "127.0.1.5": "round", "127.0.1.6": "/jpeg/0"}
    server.robots |= {"127.0.1.7": "forbidden", "127.0.1.8": "reset_in_body", "127.0.1.9": "bomb_of_zeros"}
    wanted = wanted_of(server, ["jpeg"] * 27, 9)
    fetch_shard(wanted, tmp_path / "0.tar", LIMITS)
    found = [row.status for row in read_rows(tmp_path / "0.tar")]
    expected = ["success", "robots", "robots_unreachable", "robots_unreachable", "success", "success", "success"]
    expected += ["robots_unreachable", "success"]
    assert found == expected * 3
    for host in range(1, 10):
        assert server.asked[f"127.0.1.{host}/robots.txt"] == 1 + 5 * (host == 5)


def test_robots_of_where_a_redirect_leads_are_followed(server: Hostile, tmp_path: Path) -> None:
    server.robots["127.9.9.9"] = b"User-agent: *\nDisallow: /jpeg/\n"
    assert status_of(server.url("redirected_far", "1"), tmp_path).status == "robots"
    limits = replace(LIMITS, follow_robots=False)
    assert status_of(server.url("redirected_far", "2"), tmp_path, limits).status == "success"


def test_without_robots_nobody_asks_for_them(server: Hostile, tmp_path: Path) -> None:
    server.robots["127.0.0.1"] = b"User-agent: *\nDisallow: /\n"
    assert status_of(server.url("jpeg", "1"), tmp_path, replace(LIMITS, follow_robots=False)).status == "success"
    assert server.asked == {"/jpeg/1": 1}


def test_a_host_gets_few_requests_at_once_and_pauses(server: Hostile, tmp_path: Path) -> None:
    server.delay = 0.05
    fetch_shard(wanted_of(server, ["jpeg"] * 40, 2), tmp_path / "0.tar", replace(LIMITS, per_host=3))
    assert server.most == {"127.0.1.1": 3, "127.0.1.2": 3}
    server.times.clear()
    fetch_shard(wanted_of(server, ["jpeg"] * 6), tmp_path / "1.tar", replace(LIMITS, per_host=3, pause=0.1))
    # With the request for robots.txt there are six pauses, whatever the network adds to or takes from one of them.
    assert server.times["127.0.1.1"][-1] - server.times["127.0.1.1"][0] > 0.5


def test_others_redirects_wait_for_a_hosts_turn_too(server: Hostile, tmp_path: Path) -> None:
    server.delay = 0.05
    fetch_shard(wanted_of(server, ["redirected_far"] * 30, 30), tmp_path / "0.tar", replace(LIMITS, per_host=2))
    assert server.asked["/jpeg/0"] == 1
    assert server.most["127.9.9.9"] == 2


def test_a_host_that_asks_for_a_second_gets_it(server: Hostile, tmp_path: Path) -> None:
    limits = replace(LIMITS, per_host=2, follow_robots=False)
    fetch_shard(wanted_of(server, ["later_by_a_second"]), tmp_path / "0.tar", limits)
    first, second = server.times["127.0.1.1"]
    assert second - first > 0.9


def test_all_connections_together_are_bounded(server: Hostile, tmp_path: Path) -> None:
    server.delay = 0.02
    fetch_shard(wanted_of(server, ["jpeg"] * 60, 30), tmp_path / "0.tar", replace(LIMITS, connections=4))
    assert 1 < server.most_open <= 4


def test_few_hosts_are_at_work_and_each_is_done_before_many_others_begin(server: Hostile, tmp_path: Path) -> None:
    limits = replace(LIMITS, connections=1, per_host=1, pause=0.01)
    fetch_shard(wanted_of(server, ["jpeg"] * 60, 20), tmp_path / "0.tar", limits)
    asked = sorted((at, host) for host, times in server.times.items() for at in times)
    begun, left = set[str](), Counter(host for _, host in asked)
    for _, host in asked:
        begun.add(host)
        assert sum(left[each] > 0 for each in begun) <= fetch._HOSTS_AT_WORK
        left[host] -= 1


def test_a_slow_host_does_not_hold_up_the_others(server: Hostile, tmp_path: Path) -> None:
    """Its pictures are wanted first, and are as many as there are connections."""
    slow = [Wanted(key_of(n), server.url("silent", f"{n}", "127.0.2.1")) for n in range(8)]
    fast = [Wanted(key_of(100 + n), server.url("jpeg", f"{n}", f"127.0.3.{n}")) for n in range(8)]
    limits = replace(LIMITS, connections=4, per_host=2, seconds=0.5)
    fetch_shard([*slow, *fast], tmp_path / "0.tar", limits)
    ends = [at for host, times in server.times.items() if host.startswith("127.0.3.") for at in times]
    # All others had been asked before a second pair of the slow one's pictures began.
    assert max(ends) < sorted(server.times["127.0.2.1"])[3]


def test_a_host_that_only_fails_is_given_up(server: Hostile, tmp_path: Path) -> None:
    limits = replace(LIMITS, seconds=0.1, host_failures=3, per_host=1)
    fetch_shard(wanted_of(server, ["silent"] * 8), tmp_path / "0.tar", limits)
    found = [row.status for row in read_rows(tmp_path / "0.tar")]
    assert found == ["timed_out"] * 3 + ["host_given_up"] * 5
    # One that answers in between is not.
    ways = ["silent", "silent", "jpeg"] * 3
    fetch_shard(wanted_of(server, ways), tmp_path / "1.tar", limits)
    assert [row.status for row in read_rows(tmp_path / "1.tar")] == [WAYS[way] for way in ways]


def test_whatever_is_left_of_a_host_that_is_given_up_waits_for_no_turn(server: Hostile, tmp_path: Path) -> None:
    limits = replace(LIMITS, seconds=0.1, host_failures=1, per_host=1, pause=60.0, follow_robots=False)
    fetch_shard(wanted_of(server, ["silent"] * 50), tmp_path / "0.tar", limits)  # else it would take an hour
    assert sum(server.asked.values()) == 1


def test_a_host_that_takes_all_its_time_is_given_up(server: Hostile, tmp_path: Path) -> None:
    limits = replace(LIMITS, seconds=0.3, host_seconds=0.4, per_host=1)
    fetch_shard(wanted_of(server, ["silent"] * 8), tmp_path / "0.tar", limits)
    assert [row.status for row in read_rows(tmp_path / "0.tar")] == ["timed_out"] * 2 + ["host_given_up"] * 6


# ------------------------------------------------------------------------------------------------------ ends and bounds

CALL = """
import json, re, signal, sys
from pathlib import Path
from imagebert.lait.fetch import FetchLimits, Wanted, fetch_shard
wanted, shard, limits = json.loads(sys.stdin.read())
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
signal.signal(signal.SIGINT, signal.default_int_handler)  # who starts jobs in the background ignores it for them
print("begun", flush=True)
fetch_shard([Wanted(*each) for each in wanted], Path(shard), FetchLimits(**limits))
print(peak() - before >> 10)
"""


def start(wanted: Sequence[Wanted], shard: Path, limits: FetchLimits) -> subprocess.Popen[str]:
    """The same call in a process of its own, which has begun."""
    process = subprocess.Popen(
        [sys.executable, "-c", CALL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps([wanted, str(shard), asdict(limits)]))
    process.stdin.close()
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_what_had_arrived_when_it_was_ended_is_not_asked_for_again(
    by: signal.Signals, server: Hostile, tmp_path: Path
) -> None:
    ways = ["jpeg", "missing", "small", "noai", "broken"] * 24
    wanted, shard = wanted_of(server, ways, 10), tmp_path / "0.tar"
    limits = replace(LIMITS, per_host=2, pause=0.2, seconds=10.0)  # so slow that it is ended in the middle
    process = start(wanted, shard, limits)
    deadline = time.monotonic() + 60
    while sum(server.pictures().values()) < 50:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(by)
    assert process.wait(30) != 0
    assert not shard.exists()
    lines = (tmp_path / ".0.spool" / "journal").read_bytes().splitlines(keepends=True)
    arrived = {Row(*json.loads(line)["row"]).url for line in lines if line.endswith(b"\n")}
    assert len(arrived) > 20
    fetch_shard(wanted, shard, limits)
    assert [row.status for row in read_rows(shard)] == [WAYS[way] for way in ways]
    times = {url: server.pictures()["/" + url.split("/", 3)[3]] for _, url in wanted}
    assert {times[url] for url in arrived} == {1}
    assert {times[url] for _, url in wanted} <= {1, 2}


def test_memory_is_bounded_whatever_comes(server: Hostile, tmp_path: Path) -> None:
    ways = ["endless", "endless_chunks", "bomb", "bomb_of_zeros", "endless_headers", "long_header", "never_a_size"]
    wanted = wanted_of(server, ways * 6, 20)
    process = start(wanted, tmp_path / "0.tar", replace(LIMITS, seconds=20.0, picture_bytes=16 << 20))
    assert process.wait(60) == 0
    assert process.stdout is not None
    # Bodies of the endless ones alone are 192 MiB.
    assert int(process.stdout.read()) < 100


def test_a_full_disk_is_no_fault_of_a_picture(server: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("imagebert.lait.spool._write_at", full)
    with pytest.raises(OSError, match=r"writing to .*spool failed: No space left"):
        fetch_shard(wanted_of(server, ["jpeg"] * 5), tmp_path / "0.tar", LIMITS)
    assert not (tmp_path / "0.tar").exists()


def test_too_few_file_descriptors_are_no_fault_of_a_host(
    server: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> socket.socket:
        raise OSError(24, os.strerror(24))

    monkeypatch.setattr("imagebert.lait.web._socket", none_left)
    with pytest.raises(OSError, match="Too many open files: lower the connections"):
        fetch_shard(wanted_of(server, ["jpeg"] * 5), tmp_path / "0.tar", LIMITS)


def test_where_no_host_at_all_answers_the_network_is_at_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolver({}))
    wanted = [Wanted(key_of(n), f"http://host{n}.test/1.jpg") for n in range(fetch._SILENT_HOSTS)]
    with pytest.raises(OSError, match="none of 50 hosts answers"):
        fetch_shard(wanted, tmp_path / "0.tar", LIMITS)
    assert fetch_shard(wanted[1:], tmp_path / "1.tar", LIMITS) == {"dns_failed": 49}


def test_two_do_not_fetch_one_shard(server: Hostile, tmp_path: Path) -> None:
    wanted = wanted_of(server, ["silent"])
    process = start(wanted, tmp_path / "0.tar", replace(LIMITS, seconds=30.0))
    while not server.pictures():
        time.sleep(0.01)
    with pytest.raises(UsageError, match="another process is writing"):
        fetch_shard(wanted, tmp_path / "0.tar", LIMITS)
    process.kill()
    process.wait()
