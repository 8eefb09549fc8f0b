"""Fetched text lies by kind, development and test apart, and documents are written from it."""

import hashlib
import io
import itertools
import tarfile
import zipfile

import pytest
from support.text_model import long_text

from sa_compile import cli
from sa_compile.lab.eval.packages import Package
from sa_compile.lab.eval.plan import Plan
from sa_compile.lab.eval.supply import Writer
from sa_compile.lab.eval.tasks import corpus
from sa_compile.lab.eval.tasks.corpus import COLLECTIONS, LICENCES, Archive, corpus_sources, fetch_texts


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """A source archive of manuals and code and a wheel of licences, pinned."""
    folder = tmp_path / "archives"
    folder.mkdir()
    files = {f"a-1/docs/{n}.txt": long_text(300, n) for n in range(6)}
    files |= {f"a-1/a/{n}.py": long_text(300, 10 + n) for n in range(6)} | {
        "a-1/a/tests/x.py": long_text(300)
    }
    with tarfile.open(folder / "a-1.tar.gz", "w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    with zipfile.ZipFile(folder / "b.whl", "w") as wheel:
        for n in range(6):
            wheel.writestr(f"b/{n}.LICENSE", f"---\nkey: {n}\n---\n\n{long_text(300, 20 + n)}")
    patterns = {"a-1.tar.gz": (("*/docs/*.txt", "prose"), ("*/a/*.py", "code")), "b.whl": (("b/*", "legal"),)}
    pinned = tuple(
        Archive(Package(f"{file}==1", file, hashlib.sha256((folder / file).read_bytes()).hexdigest()), known)
        for file, known in patterns.items()
    )
    monkeypatch.setattr(corpus, "COLLECTIONS", {"a": pinned, "b": pinned[1:]})
    return folder


def test_texts_are_sorted_by_kind_and_split_by_name(archives, tmp_path, capsys):
    folder = tmp_path / "texts"
    assert cli.main(["fetch-texts", str(folder), "--archives", str(archives)]) == 0
    assert "legal: 0.1 M characters" in capsys.readouterr().out
    for domain, count in {"prose": 6, "code": 6, "legal": 6}.items():
        dev, test = (corpus_sources(folder, split, (domain,)) for split in ("dev", "test"))
        assert dev and test and len(dev) + len(test) == count
        assert not {source.name for source in dev} & {source.name for source in test}
        assert not any("key:" in source.text or "tests/" in source.name for source in (*dev, *test))


def test_a_collection_is_named(archives, tmp_path, capsys):
    command = ["fetch-texts", str(tmp_path / "texts"), "--archives", str(archives), "--collection", "b"]
    assert cli.main(command) == 0
    assert sorted(path.name for path in (tmp_path / "texts").iterdir()) == ["legal"]
    with pytest.raises(ValueError, match="collection must be one of a, b, got 'c'"):
        fetch_texts(tmp_path / "others", archives, "c")


def test_collections_share_licences_alone():
    packages = [
        {archive.package.requirement.partition("==")[0].lower() for archive in archives}
        for archives in COLLECTIONS.values()
    ]
    licences = LICENCES.package.requirement.partition("==")[0]
    assert all(one & other == {licences} for one, other in itertools.combinations(packages, 2))
    for archives in COLLECTIONS.values():
        kinds = {kind for archive in archives for _, kind in archive.patterns}
        assert kinds == {"code", "prose", "legal"}


@pytest.mark.parametrize("collection", COLLECTIONS)
def test_the_command_knows_every_collection(collection, tmp_path, capsys):
    command = ["fetch-texts", str(tmp_path / "texts"), "--archives", str(tmp_path)]
    assert cli.main([*command, "--collection", collection]) != 0
    assert f"no such file: {tmp_path / COLLECTIONS[collection][0].package.file}" in capsys.readouterr().err


def test_documents_are_written_from_a_corpus(archives, tmp_path, tokenizer):
    fetch_texts(tmp_path / "texts", archives)
    tasks = ("recall_number", "recall_word")
    plan = Plan("m", (), (1280,), tasks=tasks, corpus=str(tmp_path / "texts"))
    writer = Writer(plan, tokenizer)
    document = writer.document(("facts", 1280, 0))
    assert {question.task for question in document.questions} == set(tasks)
    for question in document.questions:
        said, answer = document.tokens[: question.start], document.tokens[question.start : question.stop]
        line = tokenizer.decode(said).rsplit("\n", 1)[1] + tokenizer.decode(answer)
        assert tokenizer.decode(said).count(f"{line}.\n") == 1, "said once before"
        assert tokenizer.decode(document.tokens[question.stop :]).startswith(".\n")
    text = writer.document(("legal", 1280, 0))
    assert len(text.tokens) == 1280 and writer.digest("legal") != writer.digest("facts")


@pytest.mark.parametrize("other", ["not there", "another file"])
def test_archives_are_checked(archives, tmp_path, other):
    path = archives / "b.whl"
    path.unlink() if other == "not there" else path.write_bytes(b"")
    with pytest.raises(
        (FileNotFoundError, ValueError), match="no such file|is not the file that is expected"
    ):
        fetch_texts(tmp_path / "texts", archives)


def test_what_cannot_be_read_or_filled_is_an_error(archives, tmp_path):
    fetch_texts(tmp_path / "texts", archives)
    with pytest.raises(ValueError, match="is not empty"):
        fetch_texts(tmp_path / "texts", archives)
    with pytest.raises(FileNotFoundError, match="holds no code text: fill it with fetch-texts"):
        corpus_sources(tmp_path / "nothing", "dev", ("code",))
    with pytest.raises(ValueError, match="two sources of text"):
        Plan("m", (), (4096,), haystack=("a.txt",), corpus="b")
