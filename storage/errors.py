"""What can go wrong with a store, told apart once for all filesystems.

A store's own exceptions become one of

    FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, ValueError
                              a property of the one object that was asked for
    StorageUnavailable        infrastructure: what may pass, or hits every object alike
        CredentialsRefused    who we are was refused: trying again at once does not help
        WriteRefused          writing is refused, or has nowhere to go: no image is at fault
    Refused                   our own rule, not the store, forbids to read (storage.trust)

and their messages never hold filesystem options or the query of a url (a signed url is a secret).
"""

import errno
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from storage.shown import printable, shown


class StorageUnavailable(Exception):  # noqa: N818 - a state of the store, not a mistake
    """Infrastructure failed after bounded retries: 5xx, resets, time-outs, a full disk.

    Never a property of one image: a shard that meets it is left undone.
    """


class CredentialsRefused(StorageUnavailable):
    """The store refuses the credentials as such (expired, unknown, wrongly signed, none found)."""


class WriteRefused(StorageUnavailable):
    """The store does not let us write here; trying again at once does not help."""


class Refused(Exception):  # noqa: N818 - a rule's answer, not a mistake
    """A rule forbids to read a url; the message says which, and what to do.

    No OSError and no ValueError, which clients of stores catch and make into their own.
    """


# Of the refusals that s3fs reports as PermissionError only these concern one object; the others
# (ExpiredToken, SignatureDoesNotMatch, AccountProblem, ...) would fail every row alike.
_ONE_OBJECT_REFUSED = {"AccessDenied", "Forbidden", "403", "InvalidObjectState"}
# These two reach us as a plain OSError.
_CREDENTIAL_CODES = {"TokenRefreshRequired", "InvalidToken"}
_CREDENTIAL_ERRORS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}
# By name, so that nothing here imports a store's client before it is used.
_STORE_PACKAGES = {"aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google", "s3fs"}
OF_ONE_OBJECT = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
_BAD_NAME = {errno.ENAMETOOLONG, errno.ELOOP}
_PASSING_HTTP = {408, 425, 429}
# A server that redirects in circles, or to what is no http url, does so for this url.
_BAD_URLS = {"ParamValidationError", "NonHttpUrlClientError", "TooManyRedirects"}
# Options that the reader of an error needs to see.
_PLACES = {"endpoint_url", "region_name", "project", "account_name"}


@contextmanager
def translated(url: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Let the exceptions of the list above out, whatever the store raised; bugs pass unchanged."""
    try:
        yield
    except Exception as error:  # every filesystem brings its own exception classes
        if isinstance(error.__cause__, Refused):  # fsspec says that there is no such file
            raise error.__cause__ from None
        if isinstance(error, TypeError) and options and "unexpected keyword" in str(error):
            error = foreign_options(url.partition("://")[0])
        kind = _kind(error)
        if kind is None:
            raise
        # Without the cause: its text may hold a signed url.
        raise kind(f"{shown(url)}: {_reason(error, url, options)}") from None


def foreign_options(protocol: str) -> ValueError:
    """Options of another store were given; their values, which a client's own text may hold, are
    not told.
    """
    return ValueError(f"the options given are not for {protocol}:// urls")


def response_code(error: BaseException) -> tuple[str, int]:
    """S3 error code and HTTP status of an exception or of its causes; ("", 0) if there are none."""
    current: BaseException | None = error
    while current is not None:
        response = getattr(current, "response", None)
        if isinstance(response, Mapping):
            code = str(response.get("Error", {}).get("Code", ""))
            return code, int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        current = current.__cause__
    status = getattr(error, "status", 0)
    return "", status if isinstance(status, int) else 0


def _kind(error: Exception) -> type[Exception] | None:
    """Which exception this one is to become; None for what is no store's doing."""
    names = {kind.__name__ for kind in type(error).__mro__}
    code, status = response_code(error)
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    refuses_us = isinstance(error, PermissionError) and code not in _ONE_OBJECT_REFUSED | {""}
    if refuses_us or names & _CREDENTIAL_ERRORS or code in _CREDENTIAL_CODES:
        return CredentialsRefused
    for kind in OF_ONE_OBJECT:
        if isinstance(error, kind):
            return kind
    if "ClientResponseError" in names and not names & _BAD_URLS:
        return _kind_of_status(status)
    # A name or url that no object can have: wrong for good, and for this object only.
    is_bad_name = isinstance(error, OSError) and error.errno in _BAD_NAME
    if is_bad_name or isinstance(error, ValueError) or names & _BAD_URLS:
        return ValueError
    is_infrastructure = isinstance(error, OSError) or bool(packages & _STORE_PACKAGES)
    return StorageUnavailable if is_infrastructure else None


def _kind_of_status(status: int) -> type[Exception]:
    """The same for a plain HTTP server's answer."""
    if status == 401:
        return CredentialsRefused
    if status in (403, 451):
        return PermissionError
    if status in (404, 410):
        return FileNotFoundError
    if status in _PASSING_HTTP or not 400 <= status < 500:
        return StorageUnavailable
    return ValueError


def _reason(error: Exception, url: str, options: Mapping[str, Any]) -> str:
    """One line about an error, without secrets."""
    _, status = response_code(error)
    if type(error).__name__ in ("ClientResponseError", "TooManyRedirects"):  # they hold the url
        return f"HTTP {status}"
    is_system = isinstance(error, OSError) and error.strerror
    text = str(error.strerror) if is_system else str(error)  # type: ignore[attr-defined]
    if "://" in url:  # a query may hold spaces
        text = text.replace(url, shown(url))
    text = re.sub(r"\?\S+", "", text)
    for secret in _secrets(options):
        text = text.replace(secret, "***")
    text = printable(" ".join(text.split()))
    return (text if text and text != shown(url) else type(error).__name__)[:500]


def _secrets(options: object, key: str = "") -> Iterator[str]:
    """Every text among the options that is not the name of a place."""
    if isinstance(options, Mapping):
        for name, value in options.items():
            yield from _secrets(value, str(name))
    elif isinstance(options, list | tuple):
        for value in options:
            yield from _secrets(value, key)
    elif isinstance(options, str) and len(options) > 3 and key not in _PLACES:
        yield options
