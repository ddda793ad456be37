"""Finding the files of a dataset, and saying which are missing and where they belong."""

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from lockstep.errors import UsageError
from lockstep.files import sha256_of


def locate(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of these names that is a file in the folder."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def missing(wanted_by: str, folder: Path, absent: Iterable[str], source: str, option: str) -> UsageError:
    """What to say where files are not there: nothing is ever fetched."""
    return UsageError(
        f"{wanted_by} found no {', '.join(absent)} in {folder.absolute()}. {source} Put the files there, or say where "
        f"they are with {option}=FOLDER; nothing is downloaded"
    )


def read_limited(path: Path, most: int) -> bytes:
    """A file's bytes, decompressed where it ends in .gz; ``most`` + 1 of them where there are more."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(most + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be decompressed ({error}): put a whole copy there") from None


def digest_of_files(paths: Iterable[Path]) -> str:
    """One digest of several files' contents, in this order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(os.fsencode(path.name) + f"\0{sha256_of(path)}\n".encode())
    return digest.hexdigest()
