"""Files from the Hugging Face Hub: what is to be fetched, and fetching that resumes and is checked."""

import contextlib
import errno
import io
import os
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock
import httpx2
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers
from huggingface_hub.utils.sha import git_hash, sha_fileobj
from tqdm import tqdm

from vexpress.cli.released_files import DEFAULT_REVISION, NEEDED_FILES, RELEASED_REPOSITORY, Source
from vexpress.errors import InputError
from vexpress.files import sync

LISTING_TIMEOUT_SECONDS = 30.0


def format_bytes(num_bytes: int) -> str:
    """A size in words, such as 20.3kB."""
    return tqdm.format_sizeof(num_bytes, "B")


@dataclass(frozen=True)
class RemoteFile:
    """What the Hub says about a file at one commit."""

    commit: str
    num_bytes: int
    sha256: str | None
    """Of a file in large-file storage; None for a small one, which git itself keeps."""
    git_sha1: str | None
    """Of a small file; for a large one git only knows a pointer, so it is None."""


@dataclass(frozen=True)
class Download:
    """A needed file: where it comes from, what it has to be, where it goes."""

    source: Source
    remote: RemoteFile
    local_path: Path

    @property
    def partial_path(self) -> Path:
        """Where the bytes wait until they are complete and checked; kept on failure, so that the next run resumes."""
        return self.local_path.with_name(f".{self.local_path.name}.part")

    @property
    def is_present(self) -> bool:
        """Whether a file of the right size is in place."""
        return self.local_path.is_file() and self.local_path.stat().st_size == self.remote.num_bytes

    @property
    def num_missing_bytes(self) -> int:
        """How many bytes have still to come, >= 0."""
        if self.is_present:
            return 0
        num_partial_bytes = self.partial_path.stat().st_size if self.partial_path.is_file() else 0
        return max(self.remote.num_bytes - num_partial_bytes, 0)


@contextlib.contextmanager
def _one_line_for_network_errors(wanted: str, endpoint: str) -> Iterator[None]:
    """Turns the errors of the Hub's library into an InputError that says what could not be had, and what to do."""
    advice = "running the same command again resumes"
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise InputError(f"{wanted}: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set; unset it to download") from error
    except RevisionNotFoundError as error:
        raise InputError(f"{wanted}: there is no such revision on {endpoint}; change `revision`") from error
    except RepositoryNotFoundError as error:
        raise InputError(f"{wanted}: there is no such public repository on {endpoint}; change `endpoint`") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise InputError(
            f"{wanted}: {endpoint} answered with HTTP status {status}; change `endpoint` or try later, {advice}"
        ) from error
    except (httpx2.HTTPError, httpx2.InvalidURL, ConnectionError) as error:
        reason = str(error) or type(error).__name__
        raise InputError(
            f"{wanted}: cannot reach {endpoint} ({reason}); check the network and proxy, or give a mirror with "
            f"`endpoint`, {advice}"
        ) from error


def list_repository(repository: str, revision: str, endpoint: str) -> dict[str, RemoteFile]:
    """Asks the Hub which files a repository has.

    Args:
        repository: "owner/name" of a public model repository.
        revision: branch, tag or commit.
        endpoint: address of the Hub or of a mirror, without a slash at its end.

    Returns:
        The files by their path in the repository, all at the one commit that `revision` stands for now.

    Raises:
        InputError: the Hub cannot be reached, or it does not know the repository or the revision.
    """
    wanted = f"list of files of {repository} at {revision}"
    # No token: the files are public, and `endpoint` may name a mirror that others run.
    api = HfApi(endpoint=endpoint, token=False)
    with _one_line_for_network_errors(wanted, endpoint):
        try:
            info = api.model_info(repository, revision=revision, files_metadata=True, timeout=LISTING_TIMEOUT_SECONDS)
        except (KeyError, TypeError, ValueError) as error:  # the answer is no JSON, or another JSON
            raise InputError(f"{wanted}: {endpoint} does not answer as a Hub does; change `endpoint`") from error
    files = {}
    for sibling in info.siblings or ():
        if type(sibling.size) is not int or sibling.size < 0:
            size = textwrap.shorten(repr(sibling.size), 40)
            raise InputError(f"{wanted}: {endpoint} gives {size} as size of {sibling.rfilename}; change `endpoint`")
        sha256 = sibling.lfs.sha256 if sibling.lfs else None
        git_sha1 = None if sibling.lfs else sibling.blob_id
        files[sibling.rfilename] = RemoteFile(info.sha or revision, sibling.size, sha256, git_sha1)
    return files


def plan_downloads(parts: Sequence[str], model_dir: Path, revision: str, endpoint: str) -> list[Download]:
    """Chooses for every needed file the first source that has it.

    Where two formats will do (.safetensors or .bin), the one that is already on the disk is kept. Repositories other
    than the released one are asked only if needed, at their main branch.

    Args:
        parts: which parts to fetch, as `only` names them.
        model_dir: folder of the released layout.
        revision: branch, tag or commit of the released repository.
        endpoint: address of the Hub or of a mirror.

    Raises:
        InputError: a needed file is at none of its sources, or a listing cannot be had.
    """
    listings: dict[str, dict[str, RemoteFile]] = {}
    downloads = []
    for part, sources in NEEDED_FILES:
        if part not in parts:
            continue
        for repository in dict.fromkeys(source.repository for source in sources):
            if repository not in listings:
                repository_revision = revision if repository == RELEASED_REPOSITORY else DEFAULT_REVISION
                listings[repository] = list_repository(repository, repository_revision, endpoint)
            found = [
                Download(source, listings[repository][source.remote_path], model_dir / source.local_path)
                for source in sources
                if source.repository == repository and source.remote_path in listings[repository]
            ]
            if found:
                downloads.append(next((download for download in found if download.local_path.exists()), found[0]))
                break
        else:
            looked_for = " or ".join(f"{source.repository}/{source.remote_path}" for source in sources)
            raise InputError(
                f"{sources[0].local_path} is not on {endpoint}: looked for {looked_for}; "
                "change `revision` or `endpoint`, or leave the part out with `only`"
            )
    return downloads


def check_free_disk(downloads: Sequence[Download], model_dir: Path) -> None:
    """Finds out before gigabytes are fetched whether they fit.

    Raises:
        InputError: they do not fit, or `model_dir` is no folder.
    """
    existing_dir = next(path for path in (model_dir, *model_dir.absolute().parents) if path.exists())
    if not existing_dir.is_dir():
        raise InputError(f"{existing_dir} is not a folder; change `model_dir`", "model_dir", model_dir)
    num_missing_bytes = sum(download.num_missing_bytes for download in downloads)
    num_free_bytes = shutil.disk_usage(existing_dir).free
    if num_missing_bytes > num_free_bytes:
        raise InputError(
            f"{format_bytes(num_missing_bytes)} are to be fetched but only "
            f"{format_bytes(num_free_bytes)} are free; free some or change `model_dir`",
            "model_dir",
            model_dir,
        )


class _BoundedFile(io.BufferedWriter):
    """A file that takes no more bytes than are listed, whatever a mirror sends."""

    def __init__(self, path: Path, max_bytes: int):
        super().__init__(io.FileIO(path, "ab"))
        self.max_bytes = max_bytes

    def write(self, content: bytes) -> int:
        """Writes all of it.

        Raises:
            OSError: it is too much; without a number, as `http_get` says that a length is another.
        """
        if self.tell() + len(content) > self.max_bytes:
            raise OSError(f"more than {self.max_bytes} bytes came")
        return super().write(content)


def fetch(download: Download, endpoint: str) -> None:
    """Fetches one file, goes on with what an earlier run left of it, checks it and moves it into place.

    `hf_hub_download` throws away what it has of a file when it fails (huggingface_hub 2.4.0), and the largest ones
    here have gigabytes: so its inner `http_get`, which can resume, writes to a partial file that is kept.

    Raises:
        InputError: the network fails, the content is not what the Hub lists, or the folder cannot be written.
    """
    source, remote, partial_path = download.source, download.remote, download.partial_path
    try:
        download.local_path.parent.mkdir(parents=True, exist_ok=True)
        is_resumable = remote.sha256 or remote.git_sha1  # without a checksum, two versions could be mixed unseen
        if partial_path.is_file() and (not is_resumable or partial_path.stat().st_size > remote.num_bytes):
            partial_path.unlink()
        url = hf_hub_url(source.repository, source.remote_path, revision=remote.commit, endpoint=endpoint)
        with (
            _one_line_for_network_errors(f"{source.repository}/{source.remote_path}", endpoint),
            _BoundedFile(partial_path, remote.num_bytes) as partial_file,
        ):
            http_get(
                url,
                partial_file,
                resume_size=partial_file.tell(),
                # Compressed on the way, a small file has no length and cannot be resumed.
                headers=build_hf_headers(token=False, headers={"Accept-Encoding": "identity"}),
                expected_size=remote.num_bytes,
                displayed_filename=source.local_path,
            )
        check_content(download)
        sync(partial_path)
        os.replace(partial_path, download.local_path)
        sync(download.local_path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, error.strerror, str(download.local_path)) from error
        if error.errno is None:  # another length
            partial_path.unlink()
            raise InputError(
                f"{source.repository}/{source.remote_path}: {endpoint} sent another length than the "
                f"{remote.num_bytes} bytes that it lists; run the same command again or change `endpoint`"
            ) from error
        raise InputError(
            f"cannot write {download.local_path} ({error.strerror}); change `model_dir`", "model_dir"
        ) from error


def check_content(download: Download) -> None:
    """Compares a fetched file, still under its partial name, with the checksum that the Hub lists for it.

    Raises:
        InputError: it differs; the partial file is removed.
    """
    path, remote = download.partial_path, download.remote
    if remote.sha256:
        with path.open("rb") as file:
            is_right = sha_fileobj(file).hex() == remote.sha256
    elif remote.git_sha1:
        is_right = git_hash(path.read_bytes()) == remote.git_sha1
    else:
        is_right = path.stat().st_size == remote.num_bytes
    if not is_right:
        path.unlink()
        raise InputError(
            f"{download.source.repository}/{download.source.remote_path}: what came differs from the checksum on the "
            "Hub and was removed; run the same command again to fetch it anew, or change `endpoint`"
        )


@contextlib.contextmanager
def hold_model_dir(model_dir: Path) -> Iterator[None]:
    """Makes the folder and keeps a second run out of it: two writers of one partial file would spoil it."""
    try:
        model_dir.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(model_dir / ".download_models.lock").acquire(timeout=0)
    except filelock.Timeout as error:
        raise InputError("another download into this folder is running; wait for it", "model_dir", model_dir) from error
    except OSError as error:
        raise InputError(
            f"cannot write there ({error.strerror}); change `model_dir`", "model_dir", model_dir
        ) from error
    with lock:
        yield
