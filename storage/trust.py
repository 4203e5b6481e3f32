"""Which urls are read, by whose word: a person may name any place, a remote manifest may not.

Whoever writes a remote manifest must learn nothing from the machines that read it: no file of
theirs, and nothing of the network that they stand in.
"""

import ipaddress
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from storage.errors import Refused
from storage.locations import Location
from storage.shown import shown

if TYPE_CHECKING:
    import aiohttp

LOCAL_SCHEMES = ("file", "local")
SCHEMES = (
    *LOCAL_SCHEMES,
    *("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "http", "https", "hf"),
)
_MARK = "not read: "
_PERMIT = "give --allow-local to let it name local files and private hosts"
# Networks whose addresses end in one of IPv4, which a gateway may connect to; and those that this
# Python's registry of private ones may lack.
_TRANSLATED = [ipaddress.IPv6Network(text) for text in ("64:ff9b::/96", "::/96")]
_PRIVATE = [ipaddress.IPv6Network(text) for text in ("64:ff9b:1::/48", "fec0::/10")]


def refusal(url: str, reason: str) -> str:
    """The error of an image that is not read."""
    return f"{_MARK}{shown(url)}: {reason}"


def is_refusal(error: str | None) -> bool:
    """Whether an image's error is a rule's, so that it says nothing of a store's health."""
    return (error or "").startswith(_MARK)


def named(url: str, options: Mapping[str, Any] | None = None) -> Location:
    """The place that a person named on the command line. Raises ValueError for what no url is."""
    try:
        check_scheme(url)
    except Refused as error:
        raise ValueError(f"{shown(url)}: {error}") from None
    return Location(url, options or {})


def check_scheme(url: str) -> None:
    """Refuse chained urls and unknown schemes, which fsspec would make into whatever it likes."""
    scheme, separator, _ = url.partition("://")
    is_chained = "::" in url if separator else "::" in url.partition("/")[0]
    if is_chained:
        raise Refused("urls that are chained with '::' are not allowed; name the object itself")
    if separator and scheme not in SCHEMES:
        raise Refused(
            f"a url is a local path or begins with one of {', '.join(SCHEMES)}; got {scheme!r}"
        )


def check_remote(uri: str) -> None:
    """Refuse what a remote manifest may not name, as far as a uri alone can tell."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme in LOCAL_SCHEMES:
        raise Refused(f"a remote manifest may not name local files; {_PERMIT}")
    path = rest.partition("?")[0] if scheme in ("http", "https") else rest
    if ".." in unquote(path).replace("\\", "/").split("/"):
        raise Refused("a remote manifest's uris may not hold the segment '..'; write them without")


def of_public_hosts(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an http filesystem that connects to public addresses alone."""
    return {**options, "get_client": _public_client}


async def _public_client(**options: Any) -> "aiohttp.ClientSession":  # noqa: ANN401 - aiohttp's
    import aiohttp

    # The address that is connected to is what counts: names, redirects and whatever a name server
    # says the second time all end there. Without the race of two addresses, whose loser's
    # exception is lost.
    connector = aiohttp.TCPConnector(socket_factory=_public_socket, happy_eyeballs_delay=None)
    return aiohttp.ClientSession(connector=connector, **options)


def _public_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket for one address of a host, as aiohttp asks for it before it connects."""
    family, kind, protocol, _, place = address
    if not is_public(place[0]):
        raise Refused(
            f"the host's address is {place[0]}, and a remote manifest may name hosts of the public "
            f"internet alone; {_PERMIT}"
        )
    return socket.socket(family, kind, protocol)


def is_public(address: str) -> bool:
    """Whether an IP address is of the public internet: not private, loopback or link-local."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if any(ip in network for network in _TRANSLATED):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if any(ip in network for network in _PRIVATE):
            return False
    return ip.is_global and not ip.is_multicast
