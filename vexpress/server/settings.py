"""What a service may do and where it keeps its files. Nothing heavy is imported here: flags are made of it."""

from dataclasses import dataclass

from vexpress.errors import InputError
from vexpress.fields import check_fields, option
from vexpress.provenance import check_signing

MIN_TOKEN_LENGTH = 16


@dataclass(frozen=True)
class ServeSettings:
    """Limits and places of a service.

    Raises:
        InputError: a value is out of bounds.
    """

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 lets other machines in: set a token then")
    port: int = option(8000, "TCP port; 0 takes a free one", low=0, high=65535)
    token: str | None = option(
        None,
        "bearer token that clients must send; better set the environment variable VEXPRESS_TOKEN, since others can "
        "list flags",
        type=str,
    )
    allow_origin: str | None = option(
        None, "a web page's origin, as https://example.org, that may call this service from a browser", type=str
    )
    data_dir: str = option("output/serve", "folder for uploads, results and the list of jobs")
    max_queue: int = option(16, "jobs that may wait; more get status 429", low=1, high=10000)
    max_streams: int = option(1, "live streams at the same time", low=0, high=100)
    max_upload_mb: float = option(64.0, "largest upload", low=0.01, high=10000, unit="MB")
    max_seconds: float = option(120.0, "longest speech of a job", low=1, high=36000, unit="s")
    max_stream_seconds: float = option(600.0, "longest live stream", low=1, high=36000, unit="s")
    max_px: int = option(1024, "largest width and height of a video", low=64, high=2048, unit="px")
    max_steps: int = option(100, "most denoising steps of a job", low=1, high=1000)
    max_text: int = option(600, "longest text to speak", low=1, high=100000, unit="characters")
    max_job_seconds: float = option(3600.0, "time a job may take", low=1, high=360000, unit="s")
    idle_seconds: float = option(30.0, "a client that sends or reads nothing for so long is given up", low=1, high=3600)
    keep_hours: float = option(24.0, "finished jobs and their files are deleted after", low=0.001, high=10000, unit="h")
    max_data_gb: float = option(
        50.0, "uploads and results that are kept; beyond it requests get status 507", low=0.001, high=1e6, unit="GB"
    )
    c2pa_certificate: str | None = option(
        None, "PEM of a certificate chain, to sign that videos are generated", type=str
    )
    c2pa_key: str | None = option(None, "PEM of the certificate's key; needs the package c2pa-python", type=str)

    def __post_init__(self):
        check_fields(self)
        if self.token is not None:
            if len(self.token) < MIN_TOKEN_LENGTH:
                raise InputError(f"must have {MIN_TOKEN_LENGTH} characters or more", "token")
            # What else a header holds is read in several ways, and spaces around it are left out.
            if not (self.token.isascii() and self.token.isprintable() and self.token == self.token.strip()):
                raise InputError("must be of printable ASCII characters, and not begin or end with a space", "token")
        check_signing(self.c2pa_certificate, self.c2pa_key)
