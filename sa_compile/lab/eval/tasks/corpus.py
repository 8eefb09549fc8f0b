"""Real text by kind, fetched from pinned packages: manuals, sources and licences.

A folder of it holds one folder a kind, and below that the files under the names that decide which of them are
for development and which for the test (:func:`~.haystack.split_of`).
"""

from __future__ import annotations

import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from sa_compile.lab.eval.packages import Package, checked, download

from .haystack import DOMAINS, Source, check_domains, clean, distinct, split_of


@dataclass(frozen=True)
class Archive:
    """A package, and which of its files are text of which kind: (pattern of the path, kind)."""

    package: Package
    patterns: tuple[tuple[str, str], ...]


LICENCES = Archive(
    Package(
        "licensedcode-data==32.1.0",
        "licensedcode_data-32.1.0-py3-none-any.whl",
        "18f60bde6dbabbc0a925d45ed80089cdbb7168156a2a1c118737198f9b743b96",
    ),
    (("licensedcode/data/licenses/*.LICENSE", "legal"),),
)

# Collections share no manual and no source; their licences differ by what a seed takes from them.
COLLECTIONS = {
    "a": (
        Archive(
            Package(
                "Django==5.2",
                "Django-5.2.tar.gz",
                "1a47f7a7a3d43ce64570d350e008d2949abe8c7e21737b351b6a1611277c6d89",
            ),
            (("*/docs/*.txt", "prose"), ("*/django/*.py", "code")),
        ),
        Archive(
            Package(
                "Sphinx==8.2.3",
                "sphinx-8.2.3.tar.gz",
                "398ad29dee7f63a75888314e9424d40f52ce5a6a87ae88e7071e80af296ec348",
            ),
            (("*/doc/*.rst", "prose"), ("*/sphinx/*.py", "code")),
        ),
        Archive(
            Package(
                "Twisted==25.5.0",
                "twisted-25.5.0-py3-none-any.whl",
                "8559f654d01a54a8c3efe66d533d43f383531ebf8d81d9f9ab4769d91ca15df7",
            ),
            (("twisted/*.py", "code"),),
        ),
        LICENCES,
    ),
    "b": (
        Archive(
            Package(
                "SQLAlchemy==2.0.44",
                "sqlalchemy-2.0.44.tar.gz",
                "0ae7454e1ab1d780aee69fd2aae7d6b8670a581d8847f2d1e0f7ddfbf47e5a22",
            ),
            (("*/doc/*.rst", "prose"), ("*/lib/sqlalchemy/*.py", "code")),
        ),
        Archive(
            Package(
                "pytest==8.4.2",
                "pytest-8.4.2.tar.gz",
                "86c0d0b93306b961d58d62a4db4879f27fe25513d4b969df351abdddb3c30e01",
            ),
            (("*/doc/*.rst", "prose"), ("*/src/*.py", "code")),
        ),
        Archive(
            Package(
                "ansible-core==2.18.6",
                "ansible_core-2.18.6-py3-none-any.whl",
                "12a34749a7b20f0f1536bd3e3b2e137341867e4642e351273e96647161f595c0",
            ),
            (("ansible/*.py", "code"),),
        ),
        LICENCES,
    ),
    "c": (
        Archive(
            Package(
                "nova==31.0.0",
                "nova-31.0.0.tar.gz",
                "4c13bfd6be60ed110c973a8bf94532740ba746bd4d0e1a415e9bf2b6fef5bc24",
            ),
            (("*/doc/*.rst", "prose"), ("*/nova/*.py", "code")),
        ),
        Archive(
            Package(
                "celery==5.5.3",
                "celery-5.5.3.tar.gz",
                "6c972ae7968c2b5281227f01c3a3f984037d21c5129d07bf3550cc2afc6b10a5",
            ),
            (("*/docs/*.rst", "prose"), ("*/celery/*.py", "code")),
        ),
        Archive(
            Package(
                "buildbot==4.3.0",
                "buildbot-4.3.0.tar.gz",
                "cbf46a15004bb1229712285e4f2b98163a169868ea00783e5e0d7cf8d5e8d962",
            ),
            (("*/docs/*.rst", "prose"), ("*/buildbot/*.py", "code")),
        ),
        Archive(
            Package(
                "Scrapy==2.13.3",
                "scrapy-2.13.3.tar.gz",
                "bf17588c10e46a9d70c49a05380b749e3c7fba58204a367a5747ce6da2bd204d",
            ),
            (("*/docs/*.rst", "prose"), ("*/scrapy/*.py", "code")),
        ),
        Archive(
            Package(
                "mercurial==7.1.1",
                "mercurial-7.1.1.tar.gz",
                "47cf66ba89c175536faf844c9b4cd962eb432afb516c073e51f436bf3f0bc148",
            ),
            (("*/mercurial/helptext/*.txt", "prose"), ("*/mercurial/*.py", "code"), ("*/hgext/*.py", "code")),
        ),
        LICENCES,
    ),
    "d": (
        Archive(
            Package(
                "neutron==29.0.0",
                "neutron-29.0.0.tar.gz",
                "4dc123ed085a4b2cc8af1c4fa8d7162042c4e7cfa5e895f62e99a3b46d92ba31",
            ),
            (("*/doc/*.rst", "prose"), ("*/neutron/*.py", "code")),
        ),
        Archive(
            Package(
                "salt==3008.5",
                "salt-3008.5.tar.gz",
                "0259deafd601d783721e5aa8ed10677d8c4d6cc12f5de17499af71590d593315",
            ),
            (("*/doc/*.rst", "prose"), ("*/salt/*.py", "code")),
        ),
        Archive(
            Package(
                "borgbackup==1.4.5",
                "borgbackup-1.4.5.tar.gz",
                "4f9a5fe584c504b15485841236750dea16aa7cd2ddbc4a594e9d2ce5c49c4508",
            ),
            (("*/docs/*.rst", "prose"), ("*/src/borg/*.py", "code")),
        ),
        Archive(
            Package(
                "kombu==5.7.0",
                "kombu-5.7.0.tar.gz",
                "31e62fdfd2381caa3422f8e02b84a491d9a2180ddda74507b57f4cb1e1c2c2c9",
            ),
            (("*/docs/*.rst", "prose"), ("*/kombu/*.py", "code")),
        ),
        LICENCES,
    ),
    "e": (
        Archive(
            Package(
                "cinder==28.0.0",
                "cinder-28.0.0.tar.gz",
                "8b3326ec6dd2b5e34b73d39f6142a3e4908a7afe14974b651e4686dac8a1a12f",
            ),
            (("*/doc/*.rst", "prose"), ("*/cinder/*.py", "code")),
        ),
        Archive(
            Package(
                "ironic==38.0.0",
                "ironic-38.0.0.tar.gz",
                "9a493189a43341f7e502aaa945b24640c1f4d205aadd819fe40db872df2ff06d",
            ),
            (("*/doc/*.rst", "prose"), ("*/ironic/*.py", "code")),
        ),
        Archive(
            Package(
                "swift==2.36.0",
                "swift-2.36.0.tar.gz",
                "deab5dfbee179ba07d4cf7cabf1f39b3bd7f1f3f2a16b84df9747d4eebdf1d7c",
            ),
            (("*/doc/*.rst", "prose"), ("*/swift/*.py", "code")),
        ),
        Archive(
            Package(
                "pyramid==2.1",
                "pyramid-2.1.tar.gz",
                "5a24bc1b5f9e0f0d1c0b6ddd1111e84c15dac44a07e3c1d24e74dd9bb4fc22eb",
            ),
            (("*/docs/*.rst", "prose"), ("*/src/pyramid/*.py", "code")),
        ),
        Archive(
            Package(
                "tornado==6.6.1",
                "tornado-6.6.1.tar.gz",
                "28e6311402af59c8b02e3fa0f5e7d8eb465b25081381803b127d97e6a4395d5a",
            ),
            (("*/docs/*.rst", "prose"), ("*/tornado/*.py", "code")),
        ),
        LICENCES,
    ),
}


def fetch_texts(folder: Path, archives: Path | None = None, collection: str = "a") -> dict[str, int]:
    """Fill ``folder`` with the text of a collection; returns the number of characters of each kind.

    ``archives``: a folder that holds the packages' files already (default: pip downloads them). ValueError
    for an unknown collection, a folder that is not empty or a file with another sha256; OSError if pip fails.
    """
    if collection not in COLLECTIONS:
        raise ValueError(f"collection must be one of {', '.join(COLLECTIONS)}, got {collection!r}")
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty")
    characters = dict.fromkeys(DOMAINS, 0)
    with tempfile.TemporaryDirectory(prefix="sa_compile-fetch-") as temporary:
        source = archives
        if source is None:
            source = Path(temporary)
            download([archive.package for archive in COLLECTIONS[collection]], source)
        for archive in COLLECTIONS[collection]:
            for domain, name, text in _texts(checked(archive.package, source), archive):
                path = folder / domain / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8", newline="\n")
                characters[domain] += len(text)
    return characters


def corpus_sources(folder: Path, split: str, domains: tuple[str, ...]) -> list[Source]:
    """The split's files of a folder that :func:`fetch_texts` wrote, in a fixed order.

    FileNotFoundError if the folder has none of a kind; ValueError for an unknown split or kind.
    """
    check_domains(split, domains)
    found = []
    for domain in domains:
        paths = sorted(path for path in (folder / domain).rglob("*") if path.is_file())
        if not paths:
            raise FileNotFoundError(f"{folder} holds no {domain} text: fill it with fetch-texts")
        named = [(path.relative_to(folder / domain).as_posix(), path) for path in paths]
        found += [
            Source(name, domain, path.read_text(encoding="utf-8"))
            for name, path in named
            if split_of(name) == split
        ]
    return distinct(found)


def _texts(path: Path, archive: Archive) -> Iterator[tuple[str, str, str]]:
    """(kind, name, cleaned text) of an archive's files that its patterns name."""
    for name, content in _members(path):
        domain = next((kind for pattern, kind in archive.patterns if fnmatch(name, pattern)), None)
        if domain is None or "/test" in name:
            continue
        try:
            text = content.decode()
        except UnicodeDecodeError:
            continue
        if text := clean(_without_front_matter(text)):
            yield domain, name, text


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            for name in wheel.namelist():
                yield name, wheel.read(name)
        return
    with tarfile.open(path) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isfile() else None
            if content is not None:
                yield member.name, content.read()


def _without_front_matter(text: str) -> str:
    """A licence's text without the fields before it, which stand between two lines of three hyphens."""
    if not text.startswith("---\n"):
        return text
    _, _, rest = text[4:].partition("\n---\n")
    return rest.lstrip()
