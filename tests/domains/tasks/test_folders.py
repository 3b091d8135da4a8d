"""A folder of images, a folder a class, as few-shot tasks."""

import warnings

import jax
import numpy as np
import pytest
from PIL import Image

import imaml
from helpers.paths import ROOT
from imaml.core.errors import DataError
from imaml.domains.fewshot import images
from imaml.domains.fewshot.pixels import area_average, read_image
from imaml.domains.tasks.build import domain_of
from imaml.domains.tasks.collection import Tasks
from imaml.domains.tasks.folders import read_classes
from imaml.problems.precision import Theta

INK = np.zeros((56, 56), bool)
INK[14:42, 22:32] = True  # an upright stroke


def drawing(ink=(0, 0, 0), paper=(255, 255, 255), mask=INK):
    return Image.fromarray(np.where(mask[..., None], np.uint8(ink), np.uint8(paper)))


def save(folder, count=2, image=None):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (image or drawing()).save(folder / f"{number}.png")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def test_a_folder_a_class(tmp_path):
    for name, count in (("b", 3), ("a", 2)):
        save(tmp_path / name, count)
    found = read_classes(tmp_path, 28, 1)
    assert (found.images.shape, found.images.dtype) == ((5, 28, 28, 1), np.uint8)
    assert found.labels == ["a", "a", "b", "b", "b"]
    assert found.split is None
    expected = np.rint(255 * area_average(INK, 28))
    np.testing.assert_array_equal(found.images[0, ..., 0], expected)


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_splits(tmp_path, validation):
    for split, names in (("train", "ab"), (validation, "cd"), ("test", "ef")):
        for name in names:
            save(tmp_path / split / name)
    found = read_classes(tmp_path, 8, 3)
    assert found.images.shape == (12, 8, 8, 3)
    assert dict(zip(found.labels, found.split, strict=True)) == {
        **dict.fromkeys("ab", "train"),
        **dict.fromkeys("cd", "validation"),
        **dict.fromkeys("ef", "test"),
    }
    assert Tasks.from_folder(tmp_path, side=8).split["validation"] == ("c", "d")
    save(tmp_path / "test" / "a")
    with pytest.raises(DataError, match="expected each class in one split, got 'a' in 'train' and 'test'"):
        read_classes(tmp_path, 8, 3)


def test_folders_beside_the_splits_are_named(tmp_path):
    for name in ("train/a", "train/b", "dev/c"):
        save(tmp_path / name)
    with pytest.warns(RuntimeWarning, match=r"1 folders are excluded, as they are none of .* \(dev\)"):
        assert read_classes(tmp_path, 8, 1).labels == ["a", "a", "b", "b"]


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "car"):
        save(tmp_path / name)
    found = read_classes(tmp_path, 8, 1)
    assert set(found.labels) == {"train", "car"}
    assert found.split is None


def test_nested_folders_are_classes_by_their_path(tmp_path):
    for name in ("Greek/alpha", "Greek/beta", "Latin/a", "Latin/old/a"):
        save(tmp_path / name)
    (tmp_path / "Latin" / "loop").symlink_to(tmp_path, target_is_directory=True)
    labels = read_classes(tmp_path, 8, 1).labels
    assert sorted(set(labels)) == ["Greek/alpha", "Greek/beta", "Latin/a", "Latin/old/a"]


def test_what_is_left_out_is_named_once(tmp_path):
    for name in "abc":
        save(tmp_path / name)
    save(tmp_path / "single", 1)
    save(tmp_path / "alone", 1)
    for name in ("a/1.heic", "a/2.HEIC", "b/notes.txt", "b/.hidden", "README"):
        (tmp_path / name).write_text("no image")
    drawing().save(tmp_path / "loose.png")
    with pytest.warns(RuntimeWarning) as caught:
        found = read_classes(tmp_path, 8, 1)
    told = [str(warning.message).removeprefix(f"{tmp_path}: ") for warning in caught]
    assert told == [
        "4 files are excluded, as they have no known suffix (2 .heic, 1 without a suffix, 1 .txt). "
        "Hint: save them as .png or .jpg.",
        "1 images are excluded, as they are not in the folder of a class (loose.png).",
        "2 of 5 classes are excluded, as they have one image (alone, single).",
    ]
    assert sorted(set(found.labels)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], "expected at least two folders of images, one for each class, got an empty folder"),
        (["1.png", "2.png"], r"got images directly in it \(1.png, 2.png\)\. Hint: put images"),
        (["a/1.heic", "b/1.txt"], "got no images but files .heic, .txt"),
        (["a/1.png", "a/2.png"], "got 1 of at least two images"),
    ],
)
def test_folders_without_classes(tmp_path, names, says):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        drawing().save(tmp_path / name, format="png")
    with pytest.raises(DataError, match=says):
        read_classes(tmp_path, 8, 1)


def test_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for name, got in (("none", "no such folder"), ("file", "a file")):
        with pytest.raises(DataError, match=f"expected a folder .*, got {got}"):
            read_classes(tmp_path / name, 8, 1)


CONTRASTS = {
    "black on white": ((0, 0, 0), (255, 255, 255)),
    "white on black": ((255, 255, 255), (0, 0, 0)),
    "dark on light blue": ((30, 30, 60), (150, 150, 230)),
    "grey on grey": ((120, 120, 120), (160, 160, 160)),
    "red on green of the same brightness": ((200, 60, 60), (60, 124, 60)),
    "yellow on white": ((255, 255, 0), (255, 255, 255)),
}


@pytest.mark.parametrize("kind", CONTRASTS)
def test_ink_is_1_and_paper_0_at_any_contrast(kind, tmp_path):
    drawing(*CONTRASTS[kind]).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png", stretch=True)
    np.testing.assert_allclose(read, area_average(INK, 28), atol=1e-6)


def test_an_oblong_drawing_is_padded_with_paper(tmp_path):
    image = drawing((30, 30, 60), (150, 150, 230)).crop((14, 0, 42, 56))
    image.save(tmp_path / "a.png")
    np.testing.assert_allclose(read_image(tmp_path / "a.png", stretch=True), area_average(INK, 28), atol=1e-6)


def test_noise_and_specks_are_no_ink(tmp_path):
    random = np.random.default_rng(0)
    pixels = np.where(INK, 60.0, 200.0) + random.normal(scale=3, size=INK.shape)
    pixels[4, 4] = 0  # a speck darker than the ink: one of the four pixels of a cell
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png", stretch=True)
    expected = area_average(INK, 28)
    expected[2, 2] = 0.25
    np.testing.assert_allclose(read, expected, atol=0.12)


def test_without_stretch_images_are_read_as_ever(tmp_path):
    drawing((120, 120, 120), (160, 160, 160)).save(tmp_path / "a.png")
    expected = area_average(np.where(INK, 135, 95) / 255, 28)
    np.testing.assert_allclose(read_image(tmp_path / "a.png"), expected, atol=1e-6)


def test_blank_images_are_named(tmp_path):
    save(tmp_path / "a")
    dots = np.eye(56, dtype=bool) & (np.arange(56) < 2)
    save(tmp_path / "b", 2, drawing(mask=dots))
    save(tmp_path / "c")
    drawing((250, 250, 250)).save(tmp_path / "c" / "faint.png")
    says = r"3 images are nearly blank at 28 x 28 pixels \(b/0.png, b/1.png, c/faint.png\)\. Hint: crop"
    with pytest.warns(RuntimeWarning, match=says):
        found = read_classes(tmp_path, 28, 1)
    assert not found.images[-1].any()


def test_what_was_read_is_kept_until_a_file_changes(tmp_path, monkeypatch, capsys):
    for name in "ab":
        save(tmp_path / name)
    monkeypatch.setattr(images, "MANY", 3)
    first = read_classes(tmp_path, 8, 1)
    assert capsys.readouterr().err == "reading 4 images; they are cached for the next run\n"
    again = read_classes(tmp_path, 8, 1)
    assert capsys.readouterr().err == ""
    np.testing.assert_array_equal(first.images, again.images)
    drawing(mask=~INK & (np.arange(56) > 20)).save(tmp_path / "a" / "0.png")
    assert not np.array_equal(read_classes(tmp_path, 8, 1).images, first.images)
    monkeypatch.setattr(images, "EVERY", -1.0)
    read_classes(tmp_path, 9, 1)
    assert "read 4 of 4 images" in capsys.readouterr().err


def test_a_damaged_image_is_named(tmp_path):
    for name in "ab":
        save(tmp_path / name)
    (tmp_path / "b" / "bad.png").write_text("no image")
    with pytest.raises(DataError, match=r"bad.png: expected a PNG, .* got one that is damaged"):
        read_classes(tmp_path, 8, 1)


def test_episodes_of_a_folder(tmp_path, ranks_mixed):
    for number in range(6):
        mask = np.roll(INK, 8 * number - 24, axis=1)
        save(tmp_path / f"class {number}", 4, drawing((0, 0, 90), (240, 240, 255), mask))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tasks = Tasks.from_folder(tmp_path, side=14)
        domain, chosen = domain_of(tasks, imaml.Conv4(2, 4, 14, 1), validation=0.34, test=0.34)
    assert {choice.name: choice.value for choice in chosen} == {
        "loss": "cross_entropy",
        "shots": 1,
        "ways": 2,
    }
    task = domain.sample(jax.random.key(0), "test")
    assert task.support.inputs.shape == (2, 14, 14, 1)
    assert 0 <= task.support.inputs.min() < task.support.inputs.max() <= 1
    assert domain.baselines(task)["nearest class mean"] == 1  # all images of a class are the same


@pytest.mark.usefixtures("ranks_mixed")
def test_a_named_network_is_as_wide_as_what_it_starts_from():
    images = np.random.default_rng(0).uniform(size=(60, 28, 28, 1))
    tasks = imaml.Tasks.from_arrays(images, groups=np.repeat(np.arange(15), 4))
    network = lambda **options: domain_of(tasks, shots=1, **options)[0].recipe.model  # noqa: E731
    assert network().filters == 32
    theta = imaml.load(ROOT / "artefacts" / "characters-5w1s.safetensors").theta
    assert network(start=theta).filters == 64
    assert network(start=Theta(theta)).filters == 64
    assert network(model=imaml.Conv4(3, 8), start=theta).filters == 8
    assert network(start={"layer1": 0}).filters == 32
