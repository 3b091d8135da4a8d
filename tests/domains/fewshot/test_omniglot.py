"""Omniglot from zips, folders and .npz: the same table from each, damage noticed, downloads verified."""

import hashlib
import os
import shutil
import urllib.error
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.paths import DATA
from imaml.core.errors import ConfigError, DataError
from imaml.domains.fewshot import omniglot, omniglot_files
from imaml.domains.fewshot.pixels import area_average

# alphabet -> (whether of the evaluation set, upstream ids of its characters): a small Omniglot
ALPHABETS = {f"Alphabet_{n}": (False, [3 * n + 1, 3 * n + 2]) for n in range(6)}
ALPHABETS |= {"Late_(Other)": (True, [965, 970]), "Early": (True, [1623])}
DRAWERS = 3


def drawing(number, drawer):
    """True = ink; 105 x 105, another one for each id and drawer."""
    return np.random.default_rng((number, drawer)).random((105, 105)) < 0.1


def write_folders(path, alphabets=None):
    for alphabet, (evaluation, ids) in (alphabets or ALPHABETS).items():
        for place, number in enumerate(ids, start=1):
            folder = path / omniglot_files.SETS[evaluation] / alphabet / f"character{place:02d}"
            folder.mkdir(parents=True)
            for drawer in range(1, DRAWERS + 1):
                Image.fromarray(~drawing(number, drawer)).save(folder / f"{number:04d}_{drawer:02d}.png")
    return path


def write_zips(path):
    write_folders(path / "unpacked")
    for part in omniglot_files.SETS:
        with zipfile.ZipFile(path / f"{part}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted((path / "unpacked").rglob("*.png"), reverse=True):
                if part in file.parts:
                    archive.write(file, file.relative_to(path / "unpacked"))
            archive.writestr("__MACOSX/._0001_01.png", b"not a drawing")
    shutil.rmtree(path / "unpacked")
    return path


def arrays_of(alphabets=None):
    """The arrays of the .npz file, characters in alphabetical and not in upstream order."""
    rows = [
        (name, place, number, evaluation)
        for name, (evaluation, ids) in sorted((alphabets or ALPHABETS).items())
        for place, number in enumerate(ids, start=1)
    ]
    names = sorted(alphabets or ALPHABETS)
    bits = np.array([drawing(r[2], d).ravel() for r in rows for d in range(1, DRAWERS + 1)])
    return {
        "images": np.packbits(bits, axis=1),
        "label": np.repeat(np.arange(len(rows)), DRAWERS).astype(np.int16),
        "drawer": np.tile(np.arange(1, DRAWERS + 1), len(rows)).astype(np.uint8),
        "char_alphabet": np.array([names.index(r[0]) for r in rows], np.uint8),
        "char_number": np.array([r[1] for r in rows], np.uint8),
        "char_id": np.array([r[2] for r in rows], np.int16),
        "char_is_evaluation": np.array([r[3] for r in rows]),
        "alphabet_name": np.array(names),
    }


def write_npz(path, **changes):
    arrays = {**arrays_of(), **changes}
    path.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path / "omniglot.npz", **{k: v for k, v in arrays.items() if v is not None})
    return path / "omniglot.npz"


WRITERS = {"folders": write_folders, "zips": write_zips, "npz": write_npz}


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    """A cache, a working folder and an environment of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("IMAML_DATA", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def small(monkeypatch):
    """The small Omniglot above taken for the whole."""
    ordered = sorted(number for _, ids in ALPHABETS.values() for number in ids)
    bits = [drawing(number, drawer).ravel() for number in ordered for drawer in range(1, DRAWERS + 1)]
    monkeypatch.setattr(
        omniglot, "CONTENT_SHA256", hashlib.sha256(np.packbits(bits, axis=1).tobytes()).hexdigest()
    )


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("complete", [True, False])
def test_every_form_gives_the_table_of_the_drawings(form, complete, tmp_path, small):
    table = omniglot.read(WRITERS[form](tmp_path / "data"), complete=complete)
    ids = sorted(number for _, ids in ALPHABETS.values() for number in ids)
    assert table.names[:3] == ("Alphabet_0/character01", "Alphabet_0/character02", "Alphabet_1/character01")
    assert table.names[-3:] == ("Late_(Other)/character01", "Late_(Other)/character02", "Early/character01")
    assert table.groups[-3:] == ("Late_(Other)", "Late_(Other)", "Early")
    assert table.image_shape == (28, 28, 1)
    for index, number in enumerate(ids):
        drawings = np.stack([drawing(number, drawer) for drawer in range(1, DRAWERS + 1)])
        # 255 parts of 225: whole numbers of fifteenths, which are never a half, so rounding is unambiguous
        expected = np.rint(255 * area_average(drawings, 28).astype(np.float64))
        np.testing.assert_array_equal(table.of(index)[..., 0], expected)


def test_zip_beside_an_unpacked_folder(tmp_path, small):
    write_zips(tmp_path / "data")
    with zipfile.ZipFile(tmp_path / "data/images_evaluation.zip") as archive:
        archive.extractall(tmp_path / "data")
    (tmp_path / "data/images_evaluation.zip").unlink()
    assert omniglot.read(tmp_path / "data").classes == 15
    assert omniglot.check(tmp_path / "data").kind == "unpacked folders and zip files"


@pytest.mark.parametrize("split", omniglot.SPLITS)
@pytest.mark.parametrize("form", WRITERS)
def test_splits_are_disjoint_and_the_same_from_every_form(split, form, tmp_path, small):
    table = omniglot.read(WRITERS[form](tmp_path / "data"), split)
    reference = omniglot.read(write_npz(tmp_path / "reference"), split)
    ids = np.concatenate(list(table.splits.values()))
    assert sorted(ids) == list(range(15))
    for name, members in reference.splits.items():
        np.testing.assert_array_equal(table.ids(name), members)
    if split == "background":
        assert {table.groups[i] for i in table.ids("test")} == {"Late_(Other)", "Early"}
        held_out = {table.groups[i] for i in table.ids("validation")}
        assert len(held_out) == 1
        assert not held_out & {table.groups[i] for i in table.ids("train")}


@pytest.mark.parametrize("split", ["background", "random"])
def test_seeds_draw_other_splits(split, tmp_path, small):
    path = write_npz(tmp_path / "data")
    drawn = {tuple(omniglot.read(path, split, seed=seed).ids("validation")) for seed in range(8)}
    assert len(drawn) > 2


def test_side_and_split_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="split: expected one of background, random, vinyals, got 'vinyal'"):
        omniglot.read(tmp_path, "vinyal")
    for side in (0, 106, 28.0, True):
        with pytest.raises(
            ConfigError, match=r"side: expected a whole number of at least 1 and below 106, got"
        ):
            omniglot.read(tmp_path, side=side)


@pytest.mark.parametrize("form", WRITERS)
def test_a_second_read_decodes_nothing_and_damage_is_noticed(form, tmp_path, small, monkeypatch):
    path = WRITERS[form](tmp_path / "data")
    first = omniglot.read(path).pixels
    with monkeypatch.context() as patch:
        patch.setattr(omniglot, "_resized", lambda *_: pytest.fail("it was decoded again"))
        np.testing.assert_array_equal(omniglot.read(path).pixels, first)
        with pytest.raises(pytest.fail.Exception):
            omniglot.read(path, side=14)
    (file,) = (tmp_path / "cache/imaml/tables").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    np.testing.assert_array_equal(omniglot.read(path).pixels, first)


def test_a_part_of_omniglot_is_refused_unless_asked_for(tmp_path):
    path = write_folders(tmp_path / "data")
    with pytest.raises(
        DataError,
        match=r"expected Omniglot's 1,623 characters and 32,460 drawings, got 15 and 45,.*complete=False",
    ):
        omniglot.read(path)
    assert not (tmp_path / "cache/imaml/tables").exists()
    assert omniglot.read(path, complete=False).classes == 15


def cut(file, keep=0.6):
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep)])


def truncated_png(path):
    cut(next(iter(sorted(write_folders(path).rglob("*.png")))))
    return path


def small_png(path):
    Image.new("1", (28, 28)).save(next(iter(sorted(write_folders(path).rglob("*.png")))))
    return path


def truncated_zip(path):
    cut(write_zips(path) / "images_background.zip")
    return path


def flipped_zip(path):
    file = write_zips(path) / "images_background.zip"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)
    return path


def other_zip(path):
    with zipfile.ZipFile(write_zips(path) / "images_evaluation.zip", "w") as archive:
        archive.writestr("holiday/beach.png", b"")
    return path


def bomb(path):
    with zipfile.ZipFile(write_zips(path) / "images_background.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("A/character01/0001_01.png", b"\0" * 2_000_000)
    return path


def one_set(path):
    shutil.rmtree(write_folders(path) / "images_evaluation")
    return path


def single_drawing(path):
    for file in (write_folders(path) / "images_background/Alphabet_0/character02").glob("*_0[23].png"):
        file.unlink()
    return path


def two_owners(path):
    folder = write_folders(path) / "images_background/Alphabet_1/character01"
    shutil.copy(folder / "0004_01.png", folder / "0001_09.png")
    return path


def twice(path):
    folder = write_folders(path) / "images_background"
    shutil.copytree(folder, folder / "images_background")
    return path


def odd_id(path):
    folder = write_folders(path) / "images_background/Alphabet_1/character01"
    (folder / "0004_01.png").rename(folder / "1624_01.png")
    return path


def text_file(path):
    path.mkdir()
    (path / "omniglot.npz").write_text("not an archive")
    return path


def truncated_npz(path):
    cut(write_npz(path))
    return path


def npy_file(path):
    path.mkdir()
    with (path / "omniglot.npz").open("wb") as stream:
        np.save(stream, np.arange(3))
    return path


def pickled(path):
    return write_npz(path, alphabet_name=np.array([{"a": 1}] * 8, object))


def npz(**changes):
    return lambda path: write_npz(path, **{k: v(arrays_of()[k]) if v else None for k, v in changes.items()})


BAD_DATA = {
    "missing": (
        lambda path: path,
        r"data: expected a folder with images_background.zip .*got no such file or folder",
    ),
    "empty folder": (
        lambda path: (path.mkdir(), path)[1],
        r"expected a folder .*got nothing. Hint: .*imaml data get",
    ),
    "a folder of other things": (
        lambda path: (write_folders(path / "x/y"), path)[1],
        "expected a folder .*got x. Hint",
    ),
    "one set of two": (one_set, "got no images_evaluation.zip and no folder images_evaluation"),
    "a truncated drawing": (truncated_png, r"0001_01.png cannot be read .*imaml data check omniglot"),
    "a drawing of another size": (
        small_png,
        "0001_01.png cannot be read .expected 105 x 105 pixels, got 28 x 28",
    ),
    "a truncated zip": (
        truncated_zip,
        "images_background.zip: expected a zip file, got an error.*imaml data get",
    ),
    "a zip with a bit flipped": (flipped_zip, r"images_background.zip: .*\.png cannot be read"),
    "a zip of something else": (
        other_zip,
        r"images_evaluation.zip: expected .*NNNN_MM.png, got holiday/beach.png",
    ),
    "a zip with something huge": (bomb, "0001_01.png cannot be read .larger than 1 MB"),
    "a class with one drawing": (single_drawing, "'Alphabet_0/character02': expected at least 2 images"),
    "an id in two folders": (two_owners, r"0001_09.png has the id of Alphabet_0/character01"),
    "drawings twice": (twice, r"has the id and drawer of .* and 35 more problems"),
    "an id beyond the last": (odd_id, "has id 1624 and drawer 1; ids go to 1,623"),
    "a text file": (text_file, "omniglot.npz: expected an .npz file .*got an error"),
    "a truncated npz": (truncated_npz, "omniglot.npz: expected an .npz file .*got an error"),
    "a .npy file": (npy_file, "omniglot.npz: expected an .npz file .*got an error"),
    "a pickle in an npz": (pickled, "omniglot.npz: expected an .npz file .*allow_pickle=False"),
    "no array char_id": (
        npz(char_id=None),
        "expected an .npz file with the arrays images, label, .*got an error .'char_id is not",
    ),
    "no array images": (
        npz(images=None),
        "expected an .npz file with the arrays .*got an error .'images is not",
    ),
    "images unpacked": (
        npz(images=lambda a: np.zeros((45, 105, 105), np.uint8)),
        r"expected images .*\(45, 1379\), got uint8 \(45, 105, 105\)",
    ),
    "images of floats": (
        npz(images=lambda a: a.astype(np.float32)),
        "expected images .*uint8 .*got float32",
    ),
    "a drawing too few": (npz(images=lambda a: a[1:]), r"expected images .*got uint8 \(44, 1379\)"),
    "drawers of another length": (
        npz(drawer=lambda a: a[1:]),
        r"expected drawer .*as long as label, got uint8 of shape \(44,\)",
    ),
    "ids of floats": (
        npz(char_id=lambda a: a * 1.0),
        "expected char_id of kind integer.*got float64",
    ),
    "two-dimensional labels": (
        npz(label=lambda a: a[:, None]),
        r"expected label .*got int16 of shape \(45, 1\)",
    ),
    "labels beyond the characters": (
        npz(label=lambda a: a + 1),
        "expected label from 0 to 14, got 1 to 15",
    ),
    "no labels": (
        npz(label=lambda a: a[:0], drawer=lambda a: a[:0]),
        r"expected label .*got int16 of shape \(0,\)",
    ),
    "ids twice": (npz(char_id=lambda a: a * 0 + 7), "has the id and drawer of"),
    "drawers from 0": (npz(drawer=lambda a: a - 1), "has id .* and drawer 0"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_refused(case, tmp_path):
    make, message = BAD_DATA[case]
    with pytest.raises(DataError, match=message):
        omniglot.read(make(tmp_path / "data"), complete=False)


@pytest.mark.parametrize("case", [case for case in BAD_DATA if case not in ("missing", "empty folder")])
def test_check_reports_damage_and_never_raises(case, tmp_path):
    if case == "a folder of other things":
        with pytest.raises(DataError, match=r"expected a folder .*got x"):
            omniglot.check(BAD_DATA[case][0](tmp_path / "data"))
        return
    report = omniglot.check(BAD_DATA[case][0](tmp_path / "data"))
    assert not report.ok
    assert "NOT as upstream has it" in str(report)
    assert report.problems


def test_check_of_the_whole(tmp_path, small):
    report = omniglot.check(write_zips(tmp_path / "data"))
    assert report.ok
    assert (report.alphabets, report.characters, report.drawings) == (8, 15, 45)
    assert report.digest == omniglot.CONTENT_SHA256
    assert "complete and intact" in str(report)
    assert "images_background.zip: MD5 other than torchvision has it" in str(report)


def test_check_names_identical_drawings_and_a_digest_that_differs(tmp_path):
    folder = write_folders(tmp_path / "data") / "images_background/Alphabet_0/character01"
    shutil.copy(folder / "0001_01.png", folder / "0001_03.png")
    report = omniglot.check(tmp_path / "data")
    assert report.duplicates == (("Alphabet_0/character01/0001_01", "Alphabet_0/character01/0001_03"),)
    assert any("digest of the drawings differs" in problem for problem in report.problems)


def test_locate_looks_where_it_says(tmp_path, monkeypatch):
    with pytest.raises(
        DataError, match=r"here/data, .*cache/imaml \(IMAML_DATA is not set\): expected .*data get omni"
    ):
        omniglot.locate()
    assert "not found" in omniglot.listing()
    cached = write_npz(tmp_path / "cache/imaml")
    assert omniglot.locate() == cached
    write_zips(tmp_path / "here/data/omniglot")
    assert omniglot.locate() == tmp_path / "here/data/omniglot"
    monkeypatch.setenv("IMAML_DATA", str(tmp_path / "env"))
    assert omniglot.locate() == tmp_path / "here/data/omniglot"
    named = write_npz(tmp_path / "env/omniglot")
    assert omniglot.locate() == named
    assert f"found: {named}" in omniglot.listing()
    assert omniglot.locate(cached) == cached
    assert omniglot.locate(tmp_path / "here/data") == tmp_path / "here/data/omniglot"


@pytest.fixture
def upstream(tmp_path, small, monkeypatch):
    """A fetch that copies from a folder with two archives whose MD5 are taken for upstream's."""
    archives = write_zips(tmp_path / "upstream")
    md5 = {name: hashlib.md5((archives / name).read_bytes()).hexdigest() for name in omniglot.ARCHIVE_MD5}
    monkeypatch.setattr(omniglot, "ARCHIVE_MD5", md5)
    asked = []

    def fetch(url, file):
        asked.append(url)
        shutil.copy(archives / url.rpartition("/")[2], file)

    fetch.asked = asked
    fetch.archives = archives
    return fetch


def test_get_fetches_verifies_and_then_leaves_alone(tmp_path, upstream):
    folder = omniglot.get(fetch=upstream)
    assert folder == tmp_path / "cache/imaml/omniglot"
    assert sorted(file.name for file in folder.iterdir()) == [
        "images_background.zip",
        "images_evaluation.zip",
    ]
    assert [url.rpartition("/")[2] for url in upstream.asked] == sorted(omniglot.ARCHIVE_MD5)
    assert omniglot.read().classes == 15
    assert omniglot.get(fetch=upstream) == folder
    assert len(upstream.asked) == 2
    cut(folder / "images_background.zip")
    omniglot.get(fetch=upstream)
    assert len(upstream.asked) == 4
    assert omniglot.check(folder).ok


def test_get_refuses_truncated_archives_and_keeps_nothing(tmp_path, upstream):
    cut(upstream.archives / "images_evaluation.zip")
    with pytest.raises(
        DataError, match=r"images_evaluation.zip: expected a file with MD5 .*, got .*try again"
    ):
        omniglot.get(tmp_path / "got", fetch=upstream)
    assert list((tmp_path / "got").iterdir()) == []


def test_get_refuses_other_drawings_and_keeps_nothing(tmp_path, upstream, monkeypatch):
    monkeypatch.setattr(omniglot, "CONTENT_SHA256", "0" * 64)
    with pytest.raises(
        DataError, match=r"expected the drawings known as Omniglot, got 15 characters.*Nothing was kept"
    ):
        omniglot.get(tmp_path / "got", fetch=upstream)
    assert list((tmp_path / "got").iterdir()) == []


def no_network(url, file):
    raise urllib.error.URLError("Name or service not known")


def connection_lost(url, file):
    file.write_bytes(b"PK")
    raise ConnectionResetError("Connection reset by peer")


@pytest.mark.parametrize("fetch", [no_network, connection_lost])
def test_get_without_a_network_is_one_clear_error(fetch, tmp_path):
    with pytest.raises(
        DataError,
        match=r"expected a download to .*got an error .*(Name|Connection).*Hint: check",
    ):
        omniglot.get(tmp_path / "got", fetch=fetch)
    assert list((tmp_path / "got").iterdir()) == []


def test_get_into_an_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        DataError,
        match=r"expected a download to .*file/got, got an error \(.*Not a directory",
    ):
        omniglot.get(tmp_path / "file/got", fetch=no_network)


def test_vinyals_split_has_its_sizes():
    assert np.bincount(omniglot._vinyals()).tolist() == [1028, 172, 423]


NAMED = os.environ.get("IMAML_TEST_DATA")
REAL = Path(NAMED) if NAMED else DATA / "omniglot.npz"
needs_omniglot = pytest.mark.skipif(
    not REAL.exists(), reason=f"the real Omniglot is not at {REAL}: set IMAML_TEST_DATA to an omniglot.npz"
)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The table of the real Omniglot."""
    return omniglot.read(REAL, complete=False)


@needs_omniglot
def test_real_omniglot_is_whole(real):
    assert real.pixels.shape == (32460, 28, 28, 1)
    assert real.count.tolist() == [20] * 1623
    assert real.first.tolist() == list(range(0, 32460, 20))
    assert len(set(real.groups)) == 50
    assert {name: len(ids) for name, ids in real.splits.items()} == {
        "train": 1028,
        "validation": 172,
        "test": 423,
    }
    report = omniglot.check(REAL)
    assert report.ok
    assert report.duplicates == (("Braille/character01/0192_03", "Braille/character01/0192_19"),)


@needs_omniglot
def test_real_vinyals_split_is_that_of_the_file():
    if omniglot.locate(REAL).suffix != ".npz":
        pytest.skip("zip files hold no Vinyals split to compare with")
    with np.load(omniglot.locate(REAL)) as arrays:
        expected = arrays["char_vinyals_split"][np.argsort(arrays["char_id"])]
    np.testing.assert_array_equal(omniglot._vinyals(), expected)


@needs_omniglot
def test_real_splits_are_disjoint_and_of_the_sizes_promised():
    drawings = omniglot_files.open_source(omniglot.locate(REAL)).drawings[::20]
    ids, names, evaluation = (
        np.array([getattr(d, key) for d in drawings]) for key in ("id", "name", "evaluation")
    )
    for split, validation, test in (("vinyals", 172, 423), ("background", None, 659), ("random", 100, 423)):
        for seed in range(3):
            parts = omniglot._splits(split, seed, ids, tuple(names), evaluation)
            assert sorted(np.concatenate(list(parts.values()))) == list(range(1623))
            assert len(parts["test"]) == test
            if validation is not None:
                assert len(parts["validation"]) == validation
            else:
                assert len({names[i].rpartition("/")[0] for i in parts["validation"]}) == 5


@needs_omniglot
def test_real_pixel_nearest_neighbour(real):
    """42.7 % on 5-way 1-shot tasks of test characters; 2 points are 4 standard errors of 2,000 tasks."""
    random = np.random.default_rng(0)
    pixels = real.pixels.reshape(1623, 20, -1).astype(np.float32)
    right = []
    for _ in range(2000):
        classes = random.choice(real.ids("test"), 5, replace=False)
        support, query = np.array([random.choice(20, 2, replace=False) for _ in classes]).T
        distance = ((pixels[classes, query][:, None] - pixels[classes, support][None]) ** 2).sum(-1)
        right.append(np.mean(distance.argmin(1) == np.arange(5)))
    assert abs(np.mean(right) - 0.427) < 0.02


@needs_omniglot
def test_real_drawings_as_png_give_the_same_table(real, tmp_path):
    if omniglot.locate(REAL).suffix != ".npz":
        pytest.skip("needs the packed drawings of the .npz file")
    with np.load(omniglot.locate(REAL)) as arrays:
        ids, bits = arrays["char_id"], arrays["images"].reshape(1623, 20, -1)
        flags = arrays["char_is_evaluation"]
        chosen = [*np.flatnonzero(~flags)[:3], *np.flatnonzero(flags)[:3]]
        for c in chosen:
            folder = tmp_path / omniglot_files.SETS[int(flags[c])] / f"Alphabet_{c}" / "character01"
            folder.mkdir(parents=True)
            for d, packed in enumerate(bits[c], start=1):
                image = np.unpackbits(packed, count=105 * 105).reshape(105, 105) == 0
                Image.fromarray(image).save(folder / f"{ids[c]:04d}_{d:02d}.png")
    table = omniglot.read(tmp_path, complete=False)
    for index, c in enumerate(sorted(chosen, key=lambda c: ids[c])):
        np.testing.assert_array_equal(table.of(index), real.of(int(ids[c]) - 1))
