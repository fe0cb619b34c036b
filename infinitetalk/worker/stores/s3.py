"""Objects in a bucket of an S3-compatible store: the worker's own, or one that a job names."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any, Self
from urllib.parse import quote
from uuid import uuid4

import boto3
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import ProgressCallbackInvoker, TransferConfig, create_transfer_manager
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.httpsession import URLLib3Session
from botocore.parsers import ResponseParserError
from requests.utils import get_environ_proxies
from urllib3.exceptions import HTTPError

from infinitetalk.errors import GenerationStopped
from infinitetalk.worker.errors import WorkerError
from infinitetalk.worker.settings import Settings
from infinitetalk.worker.stores.base import (
    ANY_TYPE,
    CHECK_S,
    Address,
    ListedObject,
    ObjectInfo,
    ObjectStore,
    Store,
    StoreRequest,
    Upload,
    not_stored,
)
from infinitetalk.worker.stores.bucket_place import BucketPlace, bucket_in_host, bucket_place
from infinitetalk.worker.stores.public import PublicSession, StoreTooSlow, check_target, check_watch
from infinitetalk.worker.stores.results import ObjectResults
from infinitetalk.worker.traffic import retry
from infinitetalk.worker.traffic.retry import TRANSIENT_STATUSES
from infinitetalk.worker.traffic.transport import Watch
from schemas import DEFAULT_PREFIX, ErrorCode

PROBE = ".check"
"""Prefix of the name of the object by which writing to and reading from a bucket is tested."""

MARK = "infinitetalk-request"
"""Name of the metadata entry that holds an object's mark."""

REQUEST_ATTEMPTS = 5
ADDRESS_ATTEMPTS = 4
STOP_POLL_S = 0.05
CLEAN_S = 10.0
"""Time limit in seconds for removing objects, also after a stop."""

NO_CONDITIONS = ("NotImplemented", "InvalidArgument", "InvalidRequest")
"""Codes with which compatible stores refuse a header that they do not know."""

UNREADABLE_ANSWER = (ResponseParserError, ValueError, LookupError, TypeError)
"""Exceptions of botocore and s3transfer after an answer that has no meaning: a date that is none, a missing field."""

STORE_ERRORS = (BotoCoreError, ClientError, S3UploadFailedError, HTTPError, OSError, *UNREADABLE_ANSWER)

SHOWN_ANSWER_BYTES = 4096
_REGION = re.compile(rb"<Region>([a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?)</Region>")
_VIDEO = r"/[A-Za-z0-9_-][A-Za-z0-9._-]*\.mp4"


@dataclass(frozen=True)
class Served:
    """The answer of an address.

    Attributes:
        status: status code; None if there was no answer.
        num_bytes: size of the whole object, if the answer states it.
        region: the region that the store names in a refusal.
    """

    status: int | None
    num_bytes: int | None
    region: str | None

    @property
    def is_served(self) -> bool:
        """Whether the address serves its object."""
        # A redirect may lead to a page for logging in.
        return self.status is not None and 200 <= self.status < 300


class Bucket:
    """A bucket and the connection to it.

    Args:
        place: the bucket's address, name, region and credentials.
        settings: the worker's settings.
        public_base: public address of the bucket's root; None: addresses are presigned.
        should_stop: is asked during requests to a store that the job names; None: the store is the worker's own.
    """

    def __init__(
        self, place: BucketPlace, settings: Settings, public_base: str | None, should_stop: Callable[[], bool] | None
    ) -> None:
        self.place = place
        self.settings = settings
        self.public_base = public_base
        self.is_own = should_stop is None
        self.watch = Watch(should_stop=should_stop or (lambda: False), clean_s=CLEAN_S)
        self.connect(place.region)

    def connect(self, region: str) -> None:
        """Makes the client for a region."""
        self.place = replace(self.place, region=region)
        self.client = _s3_client(self.place, self.settings)
        connect_s, read_s = self.settings.connect_timeout_s, self.settings.read_timeout_s
        if self.is_own:
            timeouts: Any = (connect_s, read_s)
            self._session = URLLib3Session(timeout=timeouts, proxies=get_environ_proxies(self.place.endpoint))
        else:
            self._session = session = PublicSession(connect_s, read_s, self.watch)
            # botocore uses the return value as the answer and sends nothing itself.
            self.client.meta.events.register("before-send.s3", lambda request, **_: session.send(request))

    def address(self, key: str) -> str:
        """The address by which clients get an object."""
        if self.public_base is not None:
            return f"{self.public_base.rstrip('/')}/{quote(key)}"
        with _s3_errors():
            address: str = self.client.generate_presigned_url(
                "get_object",
                Params={"Bucket": self.place.bucket, "Key": key},
                ExpiresIn=self.settings.s3_url_expiry_s,
            )
        return address

    def try_address(self, address: str) -> Served:
        """The answer of an address to a request for one byte.

        Raises:
            WorkerError: the time limit is reached.
        """
        status, num_bytes, region = None, None, None
        for attempt in range(ADDRESS_ATTEMPTS):
            status = None
            request = AWSRequest("GET", address, headers={"Range": "bytes=0-0"}, stream_output=True).prepare()
            try:
                response = self._session.send(request)
                status = response.status_code
                # The whole body if the store honours the range; otherwise only its beginning.
                body = response.raw.read(SHOWN_ANSWER_BYTES)
                response.raw.close()
            except StoreTooSlow as error:
                raise _s3_error(error) from error
            except (BotoCoreError, HTTPError, OSError):
                status = None
            else:
                num_bytes = _whole_size(response.headers)
                named = _REGION.search(body)
                region = None if named is None or status < 400 else named[1].decode()
            # A store may show an object a moment after it has taken it.
            if status is not None and status < 500 and status not in TRANSIENT_STATUSES and status != 404:
                break
            time.sleep(retry.FIRST_WAIT_S * attempt)
        return Served(status, num_bytes, region)

    def not_served(self, answer: Served) -> WorkerError:
        """The error of a presigned address that does not serve its object."""
        if answer.status is None:
            return not_stored("the store did not answer")
        if answer.status == 404:
            return not_stored("the store takes objects, but does not show them at their address (status 404)")
        setting = "S3_REGION" if self.is_own else "s3Config.region"
        return not_stored(
            f"the store takes objects, but answers their address with status {answer.status}: "
            f"name the store's region ({setting}), and let the credentials read objects",
            retryable=answer.status in TRANSIENT_STATUSES or answer.status >= 500,
        )


class S3Objects(ObjectStore):
    """Objects of a bucket below a prefix."""

    is_remote = True
    keeps_marks = True
    address_kind = "url"

    def __init__(self, bucket: Bucket, prefix: str) -> None:
        self.bucket = bucket
        self.prefix = prefix
        self.is_own = bucket.is_own

    def at(self, prefix: str) -> Self:
        return type(self)(self.bucket, prefix)

    def within(self, seconds: float = math.inf) -> AbstractContextManager[object]:
        return self.bucket.watch.within(min(seconds, self.bucket.settings.store_timeout_s))

    def forget_stop(self) -> None:
        self.bucket.watch.forget_stop()

    def check(self) -> None:
        """Puts a small object, gets it by the kind of address that clients will receive, and removes it: missing
        permissions are found in a second, not after a video. If the store names its region, the check is repeated with
        that region."""
        with self.within(CHECK_S):
            answer = self._try_probe()
            if answer is not None and answer.region not in (None, self.bucket.place.region):
                with _s3_errors():
                    self.bucket.connect(answer.region)
                answer = self._try_probe()
            if answer is not None and not answer.is_served:
                raise self.bucket.not_served(answer)

    def put(self, name: str, data: bytes, content_type: str = ANY_TYPE, is_new: bool = False) -> None:
        try:
            with self.within(), self._unless_there(is_new):
                self.bucket.client.put_object(**self._named(name), Body=data, ContentType=content_type)
        except STORE_ERRORS as error:
            if is_new and _status(error) in (409, 412):
                return
            if is_new and _knows_no_conditions(error):
                # Check, then write.
                if self.head(name) is None:
                    self.put(name, data, content_type)
                return
            raise _s3_error(error) from error

    @contextmanager
    def uploading(self, name: str, upload: Upload) -> Iterator[Callable[[bool], bool]]:
        yield lambda is_new: self._upload(name, upload, is_new)

    def get(self, name: str, max_bytes: int) -> bytes | None:
        with self.within(), _s3_errors():
            try:
                found = self.bucket.client.get_object(**self._named(name))
                data: bytes = found["Body"].read(max_bytes + 1)
            except self.bucket.client.exceptions.NoSuchKey:
                return None
            except STORE_ERRORS:
                check_watch(self.bucket.watch)
                raise
            # The store would keep sending the unread rest.
            found["Body"].close()
        return data if len(data) <= max_bytes else None

    def head(self, name: str) -> ObjectInfo | None:
        with self.within(CHECK_S):
            try:
                head = self.bucket.client.head_object(**self._named(name))
            except STORE_ERRORS as error:
                # S3 answers 403 for a missing object if the credentials do not allow listing the bucket.
                if _status(error) in (403, 404):
                    return None
                raise _s3_error(error) from error
        identity = f"{_fact(head, 'ETag')}-{_fact(head, 'LastModified').timestamp()}"
        return ObjectInfo(identity, _fact(head, "ContentLength"), head["Metadata"].get(MARK))

    def delete(self, names: Iterable[str]) -> None:
        with self.within(CLEAN_S), _s3_errors():
            for name in names:
                self.bucket.client.delete_object(**self._named(name))

    def list(self, folder: str = "") -> Iterator[ListedObject]:
        # Keys come in order, so that the objects of a folder are listed together.
        for page, now in self._pages("list_objects_v2", f"{self.prefix}/{folder}"):
            for entry in page.get("Contents", []):
                name = _fact(entry, "Key").removeprefix(f"{self.prefix}/")
                yield ListedObject(name, now - _fact(entry, "LastModified").timestamp())

    def url(self, name: str) -> Address:
        """The tested address by which clients get an object.

        Raises:
            WorkerError: a presigned address does not serve the object. An address below the public base only causes a
                warning, since the worker itself may be unable to reach it.
        """
        bucket = self.bucket
        with self.within(CHECK_S):
            address = bucket.address(self._key(name))
            answer = bucket.try_address(address)
        if answer.is_served:
            return Address(address, answer.num_bytes)
        if bucket.public_base is None:
            raise bucket.not_served(answer)
        said = "did not answer" if answer.status is None else f"answered with status {answer.status}"
        warning = f"this worker tested the address, which {said}: it may not serve the video"
        return Address(address, answer.num_bytes, warning)

    def remove_unfinished(self, max_age_s: float) -> None:
        """Aborts the multipart uploads of videos that are older than `max_age_s`."""
        video = re.compile(re.escape(self.prefix) + _VIDEO)
        for page, now in self._pages("list_multipart_uploads", f"{self.prefix}/"):
            for upload in page.get("Uploads", []):
                age_s = now - _fact(upload, "Initiated").timestamp()
                if video.fullmatch(_fact(upload, "Key")) and age_s > max_age_s:
                    with _s3_errors():
                        self.bucket.client.abort_multipart_upload(
                            Bucket=self.bucket.place.bucket, Key=upload["Key"], UploadId=_fact(upload, "UploadId")
                        )

    def _try_probe(self) -> Served | None:
        """Puts an object; returns the answer of its presigned address, None if addresses are not presigned."""
        name = f"{PROBE}-{uuid4().hex}"
        self.put(name, b"a trial", "text/plain")
        try:
            if self.bucket.public_base is not None:
                return None
            return self.bucket.try_address(self.bucket.address(self._key(name)))
        finally:
            # The credentials may allow writing but not removing.
            with suppress(*STORE_ERRORS):
                self.bucket.client.delete_object(**self._named(name))

    def _upload(self, name: str, upload: Upload, is_new: bool) -> bool:
        subscriber = ProgressCallbackInvoker(upload.sent.add)
        arguments = {"ContentType": upload.content_type, "Metadata": {MARK: upload.mark}}
        before = upload.sent.done
        client, target = self.bucket.client, self._named(name)
        try:
            with (
                self.within(),
                self._unless_there(is_new),
                create_transfer_manager(client, TransferConfig()) as manager,
            ):
                # If an exception leaves the block, the manager stops its requests and aborts a multipart upload.
                sending = manager.upload(
                    str(upload.path), target["Bucket"], target["Key"], extra_args=arguments, subscribers=[subscriber]
                )
                while not sending.done():
                    if upload.should_stop():
                        raise GenerationStopped
                    time.sleep(STOP_POLL_S)
                sending.result()
        except STORE_ERRORS as error:
            upload.sent.add(before - upload.sent.done)
            if is_new and _status(error) in (409, 412):
                return False
            if is_new and _knows_no_conditions(error):
                # The caller has checked that the name is free.
                return self._upload(name, upload, False)
            raise _s3_error(error) from error
        return True

    @contextmanager
    def _unless_there(self, is_new: bool) -> Iterator[None]:
        """With `is_new`, makes uploads inside fail if an object of the name exists; the transfer manager has no
        argument for this."""

        def add(params: dict[str, Any], **_: Any) -> None:
            params["IfNoneMatch"] = "*"

        names = [f"before-parameter-build.s3.{name}" for name in ("PutObject", "CompleteMultipartUpload")]
        registered = names if is_new else []
        for event in registered:
            self.bucket.client.meta.events.register(event, add, unique_id=f"new-{event}")
        try:
            yield
        finally:
            for event in registered:
                self.bucket.client.meta.events.unregister(event, unique_id=f"new-{event}")

    def _pages(self, operation: str, prefix: str) -> Iterator[tuple[dict[str, Any], float]]:
        """The pages of a listing, each with the store's clock time."""
        assert self.is_own, "a listing of a job's own store may be endless"
        pages = self.bucket.client.get_paginator(operation).paginate(Bucket=self.bucket.place.bucket, Prefix=prefix)
        with _s3_errors():
            for page in pages:
                yield page, parsedate_to_datetime(_fact(page["ResponseMetadata"]["HTTPHeaders"], "date")).timestamp()

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}"

    def _named(self, name: str) -> dict[str, str]:
        return {"Bucket": self.bucket.place.bucket, "Key": self._key(name)}


def open_bucket(request: StoreRequest) -> Store:
    """The store of a job that sends its result to a bucket: the job's own bucket, else the worker's.

    Raises:
        WorkerError: the settings for the bucket are incomplete, or the job's store is not at a public address.
    """
    config, settings = request.s3_config, request.settings
    if config is None:
        return ObjectResults(S3Objects(_own_bucket(settings), request.output_config.prefix))
    check_target("s3Config.endpointUrl", config.endpoint_url, settings)
    place = bucket_place(config.endpoint_url, config.bucket_name, config.region, config.access_id, config.access_secret)
    try:
        bucket = Bucket(place, settings, None, request.should_stop)
    except (BotoCoreError, ValueError) as error:
        raise WorkerError(
            ErrorCode.INPUT_VALIDATION,
            "s3Config: no S3 client can use this endpointUrl and region; check the host's name",
        ) from error
    return ObjectResults(S3Objects(bucket, request.output_config.prefix))


def own_bucket(settings: Settings) -> ObjectStore | None:
    """The worker's bucket; None if its settings do not name one."""
    try:
        return S3Objects(_own_bucket(settings), DEFAULT_PREFIX)
    except WorkerError:
        return None


def _own_bucket(settings: Settings) -> Bucket:
    endpoint, bucket, secret_key = settings.s3_endpoint, settings.s3_bucket, settings.s3_secret_key
    if endpoint is not None and bucket is None:
        bucket = bucket_in_host(endpoint)
    required = {
        "S3_ENDPOINT": endpoint,
        "S3_ACCESS_KEY": settings.s3_access_key,
        "S3_SECRET_KEY": secret_key,
        "S3_BUCKET": bucket,
    }
    missing = [name for name, value in required.items() if value is None]
    if missing:
        raise WorkerError(
            ErrorCode.INPUT_VALIDATION,
            f'output_config.store "s3" needs the worker\'s settings {", ".join(missing)}, or an s3Config with the '
            'job; "volume" and "inline" work without',
        )
    assert endpoint is not None and settings.s3_access_key is not None
    assert secret_key is not None and bucket is not None
    place = bucket_place(endpoint, bucket, settings.s3_region, settings.s3_access_key, secret_key.get_secret_value())
    return Bucket(place, settings, settings.s3_public_base, None)


def _s3_client(place: BucketPlace, settings: Settings) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=place.endpoint,
        region_name=place.region,
        aws_access_key_id=place.access_key,
        aws_secret_access_key=place.secret_key,
        config=Config(
            signature_version="s3v4",
            # Signs the SHA-256 of each part, also over TLS: the only checksum that every store supports.
            s3={"payload_signing_enabled": True},
            connect_timeout=settings.connect_timeout_s,
            read_timeout=settings.read_timeout_s,
            retries={"mode": "standard", "total_max_attempts": REQUEST_ATTEMPTS},
            # Not every compatible store supports the newer checksum headers.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def _whole_size(headers: Any) -> int | None:
    """The size of the whole object in the answer to a range request."""
    said = re.fullmatch(r"bytes \d+-\d+/(\d{1,18})", headers.get("Content-Range", ""))
    return None if said is None else int(said[1])


@contextmanager
def _s3_errors() -> Iterator[None]:
    try:
        yield
    except STORE_ERRORS as error:
        raise _s3_error(error) from error


def _fact(answer: Mapping[str, Any], name: str) -> Any:
    """A field of a store's answer.

    Raises:
        WorkerError: the answer lacks it.
    """
    if name not in answer:
        raise not_stored(f"the store's answer lacks {name}")
    return answer[name]


def _cause(error: BaseException) -> BaseException | None:
    return error.__context__ if isinstance(error, S3UploadFailedError) else error


def _status(error: BaseException) -> int | None:
    """The status of an error's answer; None if there was no answer."""
    cause = _cause(error)
    if not isinstance(cause, ClientError):
        return None
    status: int = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status


def _code(error: BaseException) -> str | None:
    """The error code in an error's answer."""
    cause = _cause(error)
    return cause.response.get("Error", {}).get("Code") if isinstance(cause, ClientError) else None


def _knows_no_conditions(error: BaseException) -> bool:
    """Whether the store may have refused a conditional request because it does not support them. If it had another
    reason, it refuses the same request without the condition too."""
    return _status(error) == 501 or (_status(error) == 400 and _code(error) in NO_CONDITIONS)


def _s3_error(error: Exception) -> WorkerError:
    status = _status(error)
    if isinstance(_cause(error), StoreTooSlow):
        return not_stored("the store took too long")
    if isinstance(_cause(error), UNREADABLE_ANSWER) and not isinstance(_cause(error), BotoCoreError):
        return not_stored("the store's answer cannot be read")
    if _code(error) == "RequestTimeTooSkewed":
        return not_stored("the clocks of the store and of this worker differ too much; send the job again")
    if status is None:
        return not_stored("the store did not answer")
    if status in (401, 403) or _code(error) == "AuthorizationHeaderMalformed":
        return not_stored("the store refused the credentials, or has another region than the one named", False)
    if status == 404:
        return not_stored("the store has no such bucket", retryable=False)
    return not_stored(f"the store answered with status {status}")
