from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
import torch

from autoprune.errors import TaskError
from autoprune.network import vision
from autoprune.tasks.image_folder import image_folder, read_image

Image = pytest.importorskip("PIL.Image", reason="needs pillow")


def _write(folder, classes, count, *, size=(20, 14), start=0):
    """Write ``count`` noisy PNGs per class, told apart by their red channel."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(start, start + count):
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            pixels[..., 0] = 100 * label
            Image.fromarray(pixels).save(folder / name / f"{index}.png")


def _names(samples):
    return [f"{path.parent.name}/{path.name}" for path in samples.paths]


def _load(folder, **options):
    return image_folder(str(folder), **{"size": 8, "resize": 10, **options})


def test_class_folders_are_cut_into_three_disjoint_stratified_splits(tmp_path):
    _write(tmp_path, ["cat", "dog"], 50)
    task = _load(tmp_path, search_fraction=0.25, test_fraction=0.2)
    splits = (task.training, task.search, task.test)
    names = [name for split in splits for name in _names(split)]
    assert len(set(names)) == len(names) == 100
    assert [Counter(split.targets.tolist()) for split in splits] == [
        {0: 30, 1: 30},
        {0: 10, 1: 10},
        {0: 20 // 2, 1: 20 // 2},
    ]
    assert task.classes == 2
    again = _load(tmp_path, search_fraction=0.25, test_fraction=0.2)
    assert _names(again.training) == _names(task.training)


def test_where_an_image_goes_does_not_depend_on_where_the_folder_lies(tmp_path):
    _write(tmp_path / "a", ["cat", "dog"], 20)
    (tmp_path / "b").mkdir()
    (tmp_path / "a").rename(tmp_path / "b" / "moved")
    moved = _load(tmp_path / "b" / "moved")
    _write(tmp_path / "a", ["cat", "dog"], 20)
    assert _names(_load(tmp_path / "a").test) == _names(moved.test)


@pytest.mark.parametrize("other", ["val", "test"])
def test_train_gives_training_and_search_and_the_other_folder_is_the_test(tmp_path, other):
    _write(tmp_path / "train", ["cat", "dog"], 20)
    _write(tmp_path / other, ["cat", "dog"], 5, start=100)
    task = _load(tmp_path)
    assert (len(task.training), len(task.search), len(task.test)) == (36, 4, 10)
    assert sorted(_names(task.test)) == sorted(
        f"{name}/{index}.png" for name in ("cat", "dog") for index in range(100, 105)
    )


def test_with_all_three_folders_val_is_the_search_split(tmp_path):
    for start, name in enumerate(("train", "val", "test")):
        _write(tmp_path / name, ["cat", "dog"], 3 + start, start=100 * start)
    task = _load(tmp_path)
    assert (len(task.training), len(task.search), len(task.test)) == (6, 8, 10)
    assert {path.parents[1].name for path in task.search.paths} == {"val"}
    assert {path.parents[1].name for path in task.test.paths} == {"test"}


def test_classes_are_numbered_as_in_train_even_where_the_test_lacks_one(tmp_path):
    _write(tmp_path / "train", ["ant", "bee", "cow"], 10)
    _write(tmp_path / "val", ["ant", "cow"], 2)
    task = _load(tmp_path)
    found = {
        path.parent.name: target
        for path, target in zip(task.test.paths, task.test.targets, strict=True)
    }
    assert found == {"ant": 0, "cow": 2}
    assert task.classes == 3


def test_images_come_with_their_own_class_and_normalised(tmp_path):
    _write(tmp_path, ["cat", "dog"], 10)
    task = _load(tmp_path, mean=(0.5, 0.0, 0.0), std=(0.25, 1.0, 1.0))
    images, targets = task.training.batch(0, len(task.training))
    red = (torch.tensor([0.0, 100.0])[targets] / 255 - 0.5) / 0.25
    torch.testing.assert_close(images[:, 0], red.view(-1, 1, 1).expand(-1, 8, 8))
    assert images.shape[1:] == (3, 8, 8)


@pytest.mark.parametrize("shape", [(20, 14), (14, 20), (33, 33), (9, 40)])
def test_pixels_equal_torchvisions_resize_and_centre_crop(tmp_path, shape):
    vision.torchvision_names()  # declares the operators torchvision needs before its first import
    from torchvision import transforms

    _write(tmp_path, ["a", "b"], 1, size=shape)
    path = tmp_path / "b" / "0.png"
    reference = transforms.Compose(
        [transforms.Resize(12), transforms.CenterCrop(9), transforms.PILToTensor()]
    )
    with Image.open(path) as image:
        expected = reference(image)
    assert (torch.from_numpy(read_image(path, 12, 9)) == expected).all()


def test_grey_palette_and_transparent_images_become_three_channels(tmp_path):
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    for mode in ("L", "P", "RGBA", "1"):
        path = tmp_path / f"{mode}.png"
        image.convert(mode).save(path)
        assert read_image(path, 16, 16).shape == (3, 16, 16)
    image.save(tmp_path / "grey.png")
    assert (read_image(tmp_path / "grey.png", 16, 16) == np.asarray(image)).all()


def test_search_images_are_decoded_once_and_survive_pickling(tmp_path):
    _write(tmp_path, ["cat", "dog"], 20)
    task = _load(tmp_path, search_samples=3, search_fraction=0.3)
    first = task.search.batch(0, 3)[0]
    copy = pickle.loads(pickle.dumps(task))  # noqa: S301 - made one call earlier
    for path in task.search.paths:
        path.unlink()
    assert torch.equal(task.search.batch(0, 3)[0], first)
    assert torch.equal(copy.search.batch(1, 3)[0], first[1:])
    with pytest.raises(TaskError, match="cannot be read"):
        task.search.batch(0, 4)


def test_evaluation_scores_the_split_it_is_asked_for(tmp_path):
    _write(tmp_path / "train", ["cat", "dog"], 10)
    _write(tmp_path / "val", ["cat"], 4)

    class Red(torch.nn.Module):
        def forward(self, x):
            red = x[:, 0].mean((1, 2))
            return torch.stack([-red, red], dim=1)

    task = _load(tmp_path, mean=(50 / 255, 0.0, 0.0))
    assert task.evaluate(Red(), "search").accuracy == 1.0
    score = task.evaluate(Red(), "test")
    assert (score.accuracy, score.samples) == (1.0, 4)


def test_unreadable_files_are_named_with_their_number(tmp_path):
    _write(tmp_path, ["cat", "dog"], 10)
    task = _load(tmp_path)
    broken = [task.training.paths[index] for index in (0, 2, 4, 5)]
    broken[0].write_bytes(b"no image")
    for path in broken[1:]:
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(
        TaskError, match=r"4 files cannot be read as images: .* and 1 more"
    ) as error:
        task.calibration(10)
    assert str(broken[0]) in str(error.value)


def test_folders_that_hold_no_classes_are_explained(tmp_path):
    with pytest.raises(TaskError, match="image-folder:FOLDER"):
        image_folder()
    with pytest.raises(TaskError, match="there is no folder"):
        _load(tmp_path / "nowhere")
    with pytest.raises(TaskError, match="at least two, but has 0: none"):
        _load(tmp_path)
    _write(tmp_path, ["cat"], 3)
    with pytest.raises(TaskError, match="at least two, but has 1: cat"):
        _load(tmp_path)
    (tmp_path / "dog").mkdir()
    with pytest.raises(TaskError, match=r"class folder .*dog holds no images"):
        _load(tmp_path)


def test_train_without_test_and_test_without_train_are_explained(tmp_path):
    _write(tmp_path / "train", ["cat", "dog"], 3)
    with pytest.raises(TaskError, match="neither val/ nor test/"):
        _load(tmp_path)
    (tmp_path / "train").rename(tmp_path / "val")
    with pytest.raises(TaskError, match="val/ but no train/"):
        _load(tmp_path)


def test_a_test_class_that_training_lacks_is_named(tmp_path):
    _write(tmp_path / "train", ["cat", "dog"], 3)
    _write(tmp_path / "val", ["cat", "emu"], 3)
    with pytest.raises(TaskError, match="classes that train/ lacks: emu"):
        _load(tmp_path)


def test_too_few_images_for_three_splits_are_an_error(tmp_path):
    _write(tmp_path, ["cat", "dog"], 1)
    with pytest.raises(TaskError, match=r"too few images \(2\)"):
        _load(tmp_path)


def test_a_centre_larger_than_the_image_is_refused(tmp_path):
    with pytest.raises(
        TaskError, match="resize = 10 is smaller than the centre cut out, size = 12"
    ):
        _load(tmp_path, size=12)
